-- JobHistory becomes a parent: it holds the live rows and those that ended lately, and a table for each month below it
-- holds the rest (the next migration). Whoever asks JobHistory sees all of them; the engine asks ONLY JobHistory, so that
-- a claim costs what it did, however many months there are. (Declarative partitions by ID made a claim of 13 months 2.5
-- times as dear: a claim does not know the month of a row.)
--
-- Foreign keys and primary keys end at the table they stand on. What they promised across the tables is kept by the
-- functions below. An INSERT that lets the database choose the ID and has no parent calls none of them.

-- Whoever works on these tables is waited for in pieces: a lock that is waited for holds up everybody behind it.
do $do$
declare
  attempt int := 0;
begin
  loop
    attempt := attempt + 1;
    begin
      set local lock_timeout = '500ms';
      lock table vm.Organization, vm.JobConfig, vm.JobHistory, vm.JobHistoryWaiting in access exclusive mode;
      exit;
    exception when lock_not_available or deadlock_detected then
      if attempt = 120 then
        raise;
      end if;
      perform pg_sleep(0.5);
    end;
  end loop;
end $do$;

-- The least ID of that moment and later.
create function vm.id_floor(at timestamptz) returns uuid
  language sql immutable parallel safe
  return (lpad(to_hex(greatest(0, floor(date_part('epoch', at) * 1000))::bigint), 12, '0') || repeat('0', 20))::uuid;
comment on function vm.id_floor(timestamptz) is
  'The least ID that new_id() gives at that time: where ID >= vm.id_floor(now() - interval ''1 day'') finds the rows of a day by the primary key';

-- Whether an ID (version 7) was made within the last two minutes or so: compared in units of 65.536 seconds, because
-- these are its first eight digits. Nothing is archived before its ID is five minutes old (archive_job_history), so such
-- an ID is in no month yet and need not be looked up there. One expression, so that it is inlined.
create function vm.is_fresh(id uuid) returns boolean
  language sql volatile parallel safe
  return substr(id::text, 15, 1) = '7'
    and abs(('x' || left(id::text, 8))::bit(32)::bigint
      - floor(date_part('epoch', clock_timestamp()) * 1000 / 65536)::bigint) <= 1;
comment on function vm.is_fresh(uuid) is 'Whether an ID was made just now, so that it can stand in no month table';

-- With the rights of the owner, because the row may be another organization's. Asked by fill_job_history and not by a trigger
-- of its own: a WHEN clause is made ready anew for each statement, which would cost an INSERT of one row more than the look-up.
create function vm.check_id_is_new(id uuid) returns void
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
begin
  -- Locked, because the archiver may be about to move it: between the look here and that of the primary key it would be
  -- in neither place.
  perform from only JobHistory h where h.ID = check_id_is_new.id for key share;
  if not found and exists (select from JobHistory h where h.ID = check_id_is_new.id) then
    raise exception using errcode = 'unique_violation', constraint = 'jobhistory_pkey',
      message = format('JobHistory: there is a row %s already; it is finished and archived', id),
      hint = 'Leave ID out: the database chooses one.';
  end if;
end $f$;
comment on function vm.check_id_is_new(uuid) is 'Refuses an ID that an archived row has';

-- The parent of a row may be archived. As a foreign key does, this looks when the statement is over, because the parent may
-- be among its own rows; the lock keeps the parent until the transaction ends.
alter table vm.JobHistory drop constraint jobhistory_parent_exists;
create function vm.check_parent() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog, pg_temp
as $f$
begin
  perform from only JobHistory h where h.ID = new.ParentJobID for key share;
  if not found then
    perform from JobHistory h where h.ID = new.ParentJobID for key share;
    if not found then
      raise exception using errcode = 'foreign_key_violation', constraint = 'jobhistory_parent_exists',
        message = format('JobHistory: the parent %s does not exist', new.ParentJobID),
        hint = 'ParentJobID is the ID of another row; leave it out if there is none.';
    end if;
  end if;
  return null;
end $f$;
create trigger jobhistory_parent_exists after insert on vm.JobHistory
  for each row when (new.ParentJobID is not null)
  execute function vm.check_parent();

-- A configuration stays while a row of it is archived.
create function vm.check_archived_rows() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog, pg_temp
  set enable_seqscan = off
  set jit = off
as $f$
declare
  month regclass;
  found_one boolean;
begin
  for month in select i.inhrelid::regclass from pg_inherits i where i.inhparent = 'JobHistory'::regclass order by 1 loop
    execute format('select exists (select from only %s h where h.ConfigID = $1)', month) into found_one using old.ID;
    if found_one then
      raise exception using errcode = 'foreign_key_violation', constraint = 'jobhistory_config_exists',
        message = format('JobConfig %s still has archived rows in JobHistory (%s)', old.ID, month),
        hint = 'Set Active = false instead; its rows go when their RetentionDays are over.';
    end if;
  end loop;
  return null;
end $f$;
create trigger jobconfig_keep_archived after delete on vm.JobConfig
  for each row execute function vm.check_archived_rows();
create trigger jobconfig_keep_archived_names after update on vm.JobConfig
  for each row when (old.ID <> new.ID or old.JobID <> new.JobID or old.OrganizationID <> new.OrganizationID)
  execute function vm.check_archived_rows();

-- How long finished rows are kept.
alter table vm.JobConfig add column RetentionDays int, add column LegalHold boolean not null default false;
alter table vm.Organization add column RetentionDays int, add column LegalHold boolean not null default false;
alter table vm.JobConfig add constraint jobconfig_retentiondays_is_1_to_36500 check (RetentionDays between 1 and 36500);
alter table vm.Organization
  add constraint organization_retentiondays_is_1_to_36500 check (RetentionDays between 1 and 36500);
comment on column vm.JobConfig.RetentionDays is
  'Days its rows are kept after they finished; null = as its organization says, or one above it; null all the way = for ever';
comment on column vm.JobConfig.LegalHold is 'true: none of its finished rows is removed, whatever RetentionDays says';
comment on column vm.Organization.RetentionDays is
  'Days finished rows of its configurations, and of organizations below it, are kept, where those do not say it themselves';
comment on column vm.Organization.LegalHold is
  'true: no finished row of it, or of an organization below it, is removed';

create function vm.check_retention() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog, pg_temp
as $f$
begin
  if new.RetentionDays not between 1 and 36500 then
    raise exception using errcode = 'check_violation', constraint = tg_table_name || '_retentiondays_is_1_to_36500',
      message = format('%s %s: RetentionDays is %s', tg_argv[0], new.ID, new.RetentionDays),
      hint = 'Give 1 to 36500 days (a hundred years), or null to keep rows for as long as the organization says.';
  end if;
  return new;
end $f$;
create trigger jobconfig_check_retention before insert or update of RetentionDays on vm.JobConfig
  for each row when (new.RetentionDays is not null) execute function vm.check_retention('JobConfig');
create trigger organization_check_retention before insert or update of RetentionDays on vm.Organization
  for each row when (new.RetentionDays is not null) execute function vm.check_retention('Organization');

-- What holds for each configuration. With the rights of the owner, because the organization above may be one that its
-- reader does not see; who asks sees the configurations of his organizations. UNION ends a ring of parents.
create function vm.config_retention()
  returns table (ConfigID uuid, OrganizationID uuid, RetentionDays int, LegalHold boolean, Reason text)
  language plpgsql stable
  security definer
  set search_path = vm, pg_catalog, pg_temp
  set jit = off
as $f$
begin
  -- current_user is the owner here; who asks is session_user.
  return query
    with recursive above as (
      select o.ID as Below, o.ID, o.ParentOrgID, o.Code, o.RetentionDays, o.LegalHold, array[o.ID] as Path
      from Organization o
      union all
      select a.Below, o.ID, o.ParentOrgID, o.Code, o.RetentionDays, o.LegalHold, a.Path || o.ID
      from above a join Organization o on o.ID = a.ParentOrgID
      where o.ID <> all (a.Path)
    )
    select c.ID, c.OrganizationID, coalesce(c.RetentionDays, rule.RetentionDays), c.LegalHold or hold.Code is not null,
      case
        when c.LegalHold then 'legal hold on the configuration'
        when hold.Code is not null then format('legal hold on organization %s', hold.Code)
        when c.RetentionDays is not null then format('RetentionDays of the configuration: %s', c.RetentionDays)
        when rule.RetentionDays is not null then
          format('RetentionDays of organization %s: %s', rule.Code, rule.RetentionDays)
        else 'no RetentionDays: kept for ever'
      end
    from JobConfig c
    left join lateral (
      select a.Code from above a where a.Below = c.OrganizationID and a.LegalHold
      order by cardinality(a.Path) limit 1) hold on true
    left join lateral (
      select a.Code, a.RetentionDays from above a where a.Below = c.OrganizationID and a.RetentionDays is not null
      order by cardinality(a.Path) limit 1) rule on true
    where has_column_privilege(session_user, 'vm.claim', 'historyids', 'select')
      or c.OrganizationID = any (my_organizations());
end $f$;
comment on function vm.config_retention() is
  'How long finished rows of each configuration are kept, and whose word that is; of the organizations this login may see';

-- Rows that somebody deletes. A parent stays while it has children, and what is held stays. What the archiver moves is not
-- deleted, and what retention removes was judged by it; both say so in a setting. Only the owner can delete at all where
-- there are roles, so nobody gains by setting it.
drop trigger jobhistory_forget_effects on vm.JobHistory;
create trigger jobhistory_forget_effects after delete on vm.JobHistory
  referencing old table as gone
  for each statement when (coalesce(current_setting('rosterd.moving', true), '') <> 'on')
  execute function vm.forget_effects();

create function vm.keep_what_is_needed() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog, pg_temp
  set enable_seqscan = off
  set jit = off
as $f$
declare
  found_one record;
begin
  select g.ID, c.ID as Child into found_one
    from gone g cross join lateral (select h.ID from JobHistory h where h.ParentJobID = g.ID limit 1) c
    limit 1;
  if found then
    raise exception using errcode = 'foreign_key_violation', constraint = 'jobhistory_parent_exists',
      message = format('JobHistory: %s has children that are still there, such as %s', found_one.ID, found_one.Child),
      hint = 'Delete the children first, or in the same statement.';
  end if;
  select r.ConfigID, r.Reason into found_one
    from config_retention() r
    where r.LegalHold and r.ConfigID in (select g.ConfigID from gone g)
    limit 1;
  if found then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_held_rows_are_not_deleted',
      message = format('JobHistory: rows of JobConfig %s cannot be deleted: %s', found_one.ConfigID, found_one.Reason),
      hint = 'Set LegalHold = false where it is true, if the hold is over.';
  end if;
  return null;
end $f$;
create trigger jobhistory_keep_what_is_needed after delete on vm.JobHistory
  referencing old table as gone
  for each statement when (coalesce(current_setting('rosterd.moving', true), '') <> 'on')
  execute function vm.keep_what_is_needed();
alter table vm.JobHistory enable always trigger jobhistory_keep_what_is_needed;

-- Called for live rows only: a finished row may be deleted, as far as the guard is asked.
drop trigger jobhistory_guard_delete on vm.JobHistory;
create trigger jobhistory_guard_delete before delete on vm.JobHistory
  for each row when (old.StatusID in (1, 2, -1))
  execute function vm.guard_job_history();
alter table vm.JobHistory enable always trigger jobhistory_guard_delete;

-- From here on: what looks at live rows looks at ONLY JobHistory, and is else as it was.

create or replace function vm.fill_job_history() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog, pg_temp
as $f$
declare
  job int;
  organization uuid;
  usual_priority int;
  usual_payload jsonb;
  candidates int;
  problem text;
  parent_status int;
begin
  if new.StatusID is distinct from 1 then
    if new.StatusID is null then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_new_row_is_pending',
        message = 'JobHistory: StatusID is missing',
        hint = 'Insert with StatusID 1 to start a job.';
    end if;
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_new_row_is_pending',
      message = case when new.StatusID between -1 and 5 then format('JobHistory: a new row must have StatusID 1 (PENDING), not %s (%s)', new.StatusID, status_name(new.StatusID)) else format('JobHistory: StatusID %s does not exist', new.StatusID) end,
      hint = 'Insert with StatusID 1 to start a job; rosterd writes the others itself.';
  end if;

  if new.ConfigID is null then
    if new.JobID is null then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
        message = 'JobHistory: ConfigID is missing',
        hint = 'Name the configuration to run: select ID, JobID, OrganizationID from JobConfig.';
    end if;
    select count(*) into candidates from JobConfig c where c.JobID = new.JobID and c.Active;
    if candidates <> 1 then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
        message = format('JobHistory: ConfigID is missing, and JobID %s has %s active configurations', new.JobID, candidates),
        hint = 'Name one: select ID, OrganizationID, Payload from JobConfig where JobID = ' || new.JobID || '.';
    end if;
    select c.ID into new.ConfigID from JobConfig c where c.JobID = new.JobID and c.Active;
  end if;

  select c.JobID, c.OrganizationID, coalesce(c.PriorityOverride, j.Priority), c.Payload
    into job, organization, usual_priority, usual_payload
    from JobConfig c join Job j on j.ID = c.JobID
    where c.ID = new.ConfigID;
  if not found then
    raise exception using errcode = 'foreign_key_violation',
      message = format('JobHistory: JobConfig %s does not exist', new.ConfigID),
      hint = 'Choose one of: select ID, JobID, OrganizationID from JobConfig.', constraint = 'jobhistory_config_exists';
  end if;
  if new.JobID <> job then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
      message = format('JobHistory: JobConfig %s belongs to JobID %s (%s), not to %s', new.ConfigID, job, (select j.Struct from Job j where j.ID = job), new.JobID),
      hint = 'Leave JobID out: it is filled from the configuration.';
  end if;
  if new.OrganizationID <> organization then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_config_exists',
      message = format('JobHistory: JobConfig %s belongs to organization %s, not to %s', new.ConfigID, organization, new.OrganizationID),
      hint = 'Leave OrganizationID out: it is filled from the configuration.';
  end if;
  new.JobID := job;
  new.OrganizationID := organization;
  new.Priority := coalesce(new.Priority, usual_priority);

  if new.Payload is null then
    new.Payload := usual_payload;
  elsif new.Payload <> '{}' then
    problem := payload_problem(new.Payload);
    if problem is not null then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_payload_is_acceptable',
        message = format('JobHistory: Payload %s', problem),
        hint = format('%s wants an object; select PayloadSchema from Job where ID = %s shows its fields.', (select j.Struct from Job j where j.ID = job), job);
    end if;
  end if;

  if is_runner() then
    new.CreatedDate := coalesce(new.CreatedDate, clock_timestamp());
    new.CreatedBy := coalesce(new.CreatedBy, session_user);
    if new.ScheduleID is not null and new.DueDate < clock_timestamp() - interval '5 minutes' then
      -- One row for each due time, also where its row is archived: as ON CONFLICT DO NOTHING has it, no second one is made.
      perform from only JobHistory h where h.ScheduleID = new.ScheduleID and h.DueDate = new.DueDate for key share;
      if not found and exists (
          select from JobHistory h where h.ScheduleID = new.ScheduleID and h.DueDate = new.DueDate) then
        return null;
      end if;
    end if;
  else
    new.Origin := case when new.Origin = 'rerun' then 'rerun' when new.ParentJobID is not null then 'job' else 'operator' end;
    new.CreatedDate := clock_timestamp();
    new.CreatedBy := session_user;
    if new.ScheduleID is not null or new.DueDate is not null then
      new.ScheduleID := null;
      new.DueDate := null;
    end if;
  end if;
  if new.NotBefore is null then
    new.NotBefore := new.CreatedDate;
  elsif new.NotBefore not between '1970-01-01 00:00:00+00' and '9999-01-01 00:00:00+00' then
    raise exception using errcode = 'check_violation', constraint = 'jobhistory_notbefore_is_a_date',
      message = format('JobHistory: NotBefore is %s', new.NotBefore),
      hint = 'Give a time between the years 1970 and 9999, or leave it out to start at once.';
  end if;

  if not is_fresh(new.ID) then
    perform check_id_is_new(new.ID);
  end if;

  -- What only the engine writes starts empty, whatever the INSERT said.
  if (new.Attempt = 0 and new.CurrentIteration = 0 and new.Crashes = 0) is not true
    or num_nonnulls(new.ThreadID, new.ClaimID, new.PulseDate, new.StartedDate, new.FinishedDate, new.WaitingSince,
      new.CancelDate, new.CancelBy, new.StopReason, new.Error, new.Result, new.Progress, new.UpdatedDate, new.UpdatedBy) > 0
  then
    new.Attempt := 0;
    new.CurrentIteration := 0;
    new.Crashes := 0;
    new.ThreadID := null;
    new.ClaimID := null;
    new.PulseDate := null;
    new.StartedDate := null;
    new.FinishedDate := null;
    new.WaitingSince := null;
    new.CancelDate := null;
    new.CancelBy := null;
    new.StopReason := null;
    new.Error := null;
    new.Result := null;
    new.Progress := null;
    new.UpdatedDate := null;
    new.UpdatedBy := null;
  end if;

  if new.ParentJobID is not null then
    -- FOR SHARE waits for a cancel of the parent that is being written right now, so that no child escapes it.
    select h.StatusID into parent_status from only JobHistory h where h.ID = new.ParentJobID for share;
    if not found then
      -- Archived, perhaps at this very moment.
      select h.StatusID into parent_status from JobHistory h where h.ID = new.ParentJobID for share;
    end if;
    if parent_status in (-1, 5) then
      raise exception using errcode = 'check_violation', constraint = 'jobhistory_parent_is_not_cancelled',
        message = format('JobHistory: the parent %s is cancelled', new.ParentJobID),
        hint = 'A cancelled row takes no more children; leave ParentJobID out.';
    end if;
  end if;
  return new;
end $f$;

create or replace function vm.follow_cancel() returns trigger
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
  -- The plan is kept for as long as the session: one that was made while the table was small must not read all of it for
  -- each row of a later cancel.
  set enable_seqscan = off
as $f$
declare
  children uuid[];
begin
  if not exists (select from is_now n where n.StatusID in (-1, 5)) then
    return null;
  end if;

  -- Old and new are brought together by grouping: the plan may have been made for one row and is kept for 100,000, and
  -- a join might be a nested loop in it.
  insert into AuditLog (Action, TableName, RowID, OrganizationID, Login, Application, ClientAddress, Before, After)
    select 'CANCEL', 'JobHistory', e.ID, e.OrganizationID, session_user, current_setting('application_name'),
      inet_client_addr(), case e.Before when 1 then jsonb '{"statusid": 1}' else '{"statusid": 2}' end,
      case e.After when 5 then jsonb '{"statusid": 5}' else '{"statusid": -1}' end
    from (
      select r.ID, r.OrganizationID, max(r.Before) as Before, max(r.After) as After
      from (
        select w.ID, w.OrganizationID, w.StatusID as Before, null::int as After from was w where w.StatusID in (1, 2)
        union all
        select n.ID, n.OrganizationID, null, n.StatusID from is_now n where n.StatusID in (-1, 5)) r
      group by r.ID, r.OrganizationID) e
    where e.Before is not null and e.After is not null;

  -- Cancelling a parent cancels its live children, and theirs: the UPDATE comes back here. OFFSET 0 makes it a look-up
  -- in the index for each row, whatever the plan was made for. A row that goes from -1 to 5 is looked up too; its children
  -- were cancelled with it, and it got no more.
  select array_agg(c.ID) into children
    from is_now n
    cross join lateral (
      select h.ID from only JobHistory h where h.ParentJobID = n.ID and h.StatusID in (1, 2) offset 0) c
    where n.StatusID in (-1, 5);
  if children is not null then
    update only JobHistory set StatusID = -1 where ID = any (children) and StatusID in (1, 2);
  end if;
  return null;
end $f$;

create or replace function vm.apply_job_config() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog, pg_temp
as $f$
declare
  actor text := coalesce(current_setting('rosterd.actor', true), '');
begin
  perform set_config('rosterd.actor', 'runner', true);
  if old.Continuous and not new.Continuous then
    update only JobHistory
      set StatusID = case when Error is null then 3 else 4 end, FinishedDate = clock_timestamp(),
          StopReason = 'no_longer_continuous'
      where ConfigID = new.ID and Ready and WaitingSince is not null;
  elsif new.WaitInSeconds <> old.WaitInSeconds then
    update only JobHistory
      set NotBefore = WaitingSince + greatest(new.WaitInSeconds, 1) * interval '1 second'
      where ConfigID = new.ID and Ready and WaitingSince is not null;
  end if;
  perform set_config('rosterd.actor', actor, true);
  return null;
end $f$;

create or replace view vm.JobHistoryWaiting as
with alive as materialized (
  select r.Jobs, r.Draining or r.State <> 'running' as Draining,
    r.Workers - coalesce((select sum(k.Open) from vm.Claim k where k.RunnerID = r.ID), 0) as Free
  from vm.Runner r
  where r.AloneID is null and r.Pulse > clock_timestamp() - r.LeaseSeconds * interval '1 second'
), running as materialized (
  select k.ConfigID, sum(k.Open) as n from vm.Claim k group by k.ConfigID
)
select h.ID,
  case
    when not c.Active then 'config inactive'
    when not o.Active then format('organization %s inactive', o.Code)
    when inactive.Source is not null then format('source paused: %s is inactive', inactive.Source)
    when h.NotBefore > clock_timestamp() then
      case when h.WaitingSince is not null then 'not due: waits between iterations'
           when h.Attempt > 0 then format('not due: waits to retry after attempt %s', h.Attempt)
           else 'not due' end
    when paused.Source is not null then format('source paused: %s asked for a pause', paused.Source)
    when not exists (select from alive) then 'no runner alive'
    when not exists (select from alive a where h.JobID = any(a.Jobs)) then format('no runner knows the job %s', j.Struct)
    when not exists (select from alive a where h.JobID = any(a.Jobs) and not a.Draining) then 'runners draining'
    when c.MaxInstances > 0 and coalesce(r.n, 0) >= c.MaxInstances then
      format('at MaxInstances %s/%s', r.n, c.MaxInstances)
    -- Needs no free worker, so it is never said to wait for one.
    when h.Crashes >= 2 then format('runs alone, because runners died under it %s times', h.Crashes)
    when not exists (select from alive a where h.JobID = any(a.Jobs) and not a.Draining and a.Free > 0) then
      'all workers busy'
    else 'about to start'
  end as Reason,
  case when c.Active and o.Active and inactive.Source is null then
    case when h.NotBefore > clock_timestamp() then h.NotBefore else paused.Until end end as Until,
  j.Struct, h.ConfigID, h.OrganizationID, h.Priority, h.NotBefore
from only vm.JobHistory h
join vm.JobConfig c on c.ID = h.ConfigID
join vm.Job j on j.ID = h.JobID
join vm.Organization o on o.ID = h.OrganizationID
left join running r on r.ConfigID = h.ConfigID
left join lateral (
  select s.Source from vm.SourceConfig s
  where not s.Active and (s.ID in (c.DataInSourceConfigID, c.DataOutSourceConfigID)
    or exists (select from vm.JobConfigSource x where x.ConfigID = c.ID and x.SourceConfigID = s.ID))
  limit 1) inactive on true
left join lateral (
  select s.Source, g.PausedUntil as Until
  from vm.SourceGate g join vm.SourceConfig s on s.ID = g.SourceConfigID
  where g.PausedUntil > clock_timestamp() and g.PausedDate <= clock_timestamp()
    and (s.ID in (c.DataInSourceConfigID, c.DataOutSourceConfigID)
      or exists (select from vm.JobConfigSource x where x.ConfigID = c.ID and x.SourceConfigID = s.ID))
  order by g.PausedUntil desc
  limit 1) paused on true
where h.Ready;

