-- Who changed what an organization's work depends on, and which rows were cancelled by whom; and who may see which
-- organization, for databases where `rosterd migrate --roles` was run. Nothing here asks for those roles: without them
-- the audit is written all the same, and OrganizationMember says nothing to anybody.

create table vm.AuditLog (
  ID bigint generated always as identity primary key,
  AuditDate timestamptz not null default statement_timestamp(),
  Action text not null,
  TableName text not null,
  RowID uuid,
  OrganizationID uuid,
  Login text not null,
  Application text not null,
  ClientAddress inet,
  Before jsonb,
  After jsonb,
  constraint auditlog_action_is_known check (Action in ('INSERT', 'UPDATE', 'DELETE', 'CANCEL'))
);
create index auditlog_row on vm.AuditLog (RowID);
comment on table vm.AuditLog is
  'Who changed which configuration, and who cancelled which rows; written by triggers, never changed';
comment on column vm.AuditLog.AuditDate is 'When the statement began; one statement has one date';
comment on column vm.AuditLog.Action is 'INSERT, UPDATE, DELETE, or CANCEL of a JobHistory row';
comment on column vm.AuditLog.TableName is 'JobConfig, JobConfigSource, JobSchedule, SourceConfig, Organization, OrganizationMember or JobHistory';
comment on column vm.AuditLog.RowID is 'ID of the row; of JobConfigSource its ConfigID';
comment on column vm.AuditLog.OrganizationID is 'Whose row it is; no foreign key, because the entry outlives the organization';
comment on column vm.AuditLog.Login is 'session_user: who logged in, whatever role was set since';
comment on column vm.AuditLog.Application is 'application_name, as the client gave it';
comment on column vm.AuditLog.ClientAddress is 'Null over the server''s own socket';
comment on column vm.AuditLog.Before is 'The changed columns as they were; secrets as salted hashes';
comment on column vm.AuditLog.After is 'The changed columns as they are; secrets as salted hashes';

-- Of credentials only names and limits are written down. Everything else becomes a hash, salted anew for each entry
-- with bytes that are then forgotten: before and after can be compared, and nobody can try passwords against it.
-- Only the first level is looked at: what is nested is hashed as a whole.
create function vm.hash_secrets(authinfo jsonb, salt bytea) returns jsonb
  language sql immutable
  set search_path = pg_catalog, pg_temp
  return (
    select coalesce(jsonb_object_agg(f.key, case
        when f.key in ('Delay', 'Concurrency') and jsonb_typeof(f.value) = 'number'
          or f.key in ('Username', 'Host', 'Database', 'TenantID', 'ClientID', 'Header', 'ConsumerKey')
            and jsonb_typeof(f.value) = 'string' then f.value
        else to_jsonb('sha256:' || left(encode(sha256(salt || convert_to(f.key || ' ' || f.value::text, 'UTF8')), 'hex'), 16))
      end), '{}')
    from jsonb_each(authinfo) as f);
comment on function vm.hash_secrets(jsonb, bytea) is 'AuthInfo as the audit shows it';

-- Written with the rights of the owner, because whoever is watched must not be able to write there by hand.
create function vm.audit_row() returns trigger
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
declare
  -- Stamps repeat what the entry says itself, the daemon keeps its own dates, and two columns repeat AuthInfo.
  unwatched constant text[] := '{createddate,createdby,updateddate,updatedby,lastjobstart,lastrun,nextrun,error,delay,concurrency}';
  was jsonb := to_jsonb(old) - unwatched;
  is_now jsonb := to_jsonb(new) - unwatched;
  whole jsonb := coalesce(to_jsonb(new), to_jsonb(old));
  organization uuid;
  salt bytea;
begin
  if whole ? 'authinfo' then
    salt := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
    was := was || jsonb_build_object('authinfo', hash_secrets(was -> 'authinfo', salt),
      'address', regexp_replace(regexp_replace(was ->> 'address', '//[^/]*@', '//***@'), '[?#].*', '?***'));
    is_now := is_now || jsonb_build_object('authinfo', hash_secrets(is_now -> 'authinfo', salt),
      'address', regexp_replace(regexp_replace(is_now ->> 'address', '//[^/]*@', '//***@'), '[?#].*', '?***'));
  end if;
  if tg_op = 'UPDATE' then
    select jsonb_object_agg(w.key, w.value), jsonb_object_agg(w.key, is_now -> w.key) into was, is_now
      from jsonb_each(was) as w where w.value is distinct from is_now -> w.key;
    if was is null then
      return null;
    end if;
  end if;
  organization := coalesce(whole ->> 'organizationid', case when tg_table_name = 'organization' then whole ->> 'id' end);
  if organization is null and whole ? 'configid' then
    select c.OrganizationID into organization from JobConfig c where c.ID = (whole ->> 'configid')::uuid;
  end if;
  insert into AuditLog (Action, TableName, RowID, OrganizationID, Login, Application, ClientAddress, Before, After)
    values (tg_op, tg_argv[0], coalesce(whole ->> 'id', whole ->> 'configid')::uuid, organization, session_user,
      current_setting('application_name'), inet_client_addr(), was, is_now);
  return null;
end $f$;
create trigger organization_audit after insert or update or delete on vm.Organization
  for each row execute function vm.audit_row('Organization');
create trigger sourceconfig_audit after insert or update or delete on vm.SourceConfig
  for each row execute function vm.audit_row('SourceConfig');
create trigger jobconfigsource_audit after insert or update or delete on vm.JobConfigSource
  for each row execute function vm.audit_row('JobConfigSource');
-- The daemon writes LastJobStart and NextRun all day: it is not even asked what changed.
create trigger jobconfig_audit after insert or update or delete on vm.JobConfig
  for each row when (not vm.is_runner()) execute function vm.audit_row('JobConfig');
create trigger jobschedule_audit after insert or update or delete on vm.JobSchedule
  for each row when (not vm.is_runner()) execute function vm.audit_row('JobSchedule');

-- A row for each cancelled row, from the edge itself. A statement-level trigger with transition tables would gather
-- the old and the new rows of every claim and every settlement too.
create function vm.audit_cancel() returns trigger
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
begin
  insert into AuditLog (Action, TableName, RowID, OrganizationID, Login, Application, ClientAddress, Before, After)
    values ('CANCEL', 'JobHistory', new.ID, new.OrganizationID, session_user, current_setting('application_name'),
      inet_client_addr(), jsonb_build_object('statusid', old.StatusID), jsonb_build_object('statusid', new.StatusID));
  return null;
end $f$;
create trigger jobhistory_audit after update on vm.JobHistory
  for each row when (old.StatusID in (1, 2) and new.StatusID in (-1, 5))
  execute function vm.audit_cancel();

create function vm.refuse_to_rewrite() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog, pg_temp
as $f$
begin
  raise exception using errcode = 'insufficient_privilege',
    message = format('AuditLog only grows: %s is refused', tg_op),
    hint = 'Old entries are put away by the owner of the table, see docs/security.md.';
end $f$;
create trigger auditlog_only_grows before update or delete or truncate on vm.AuditLog
  for each statement execute function vm.refuse_to_rewrite();
alter table vm.AuditLog enable always trigger auditlog_only_grows;

do $do$
begin
  -- Nobody hangs these on a table of their own, to have entries written that never happened.
  revoke execute on function vm.audit_row(), vm.audit_cancel() from public;
end $do$;

-- Who may see and do what in which organization; for logins that are members of rosterd_operator or rosterd_viewer.
create table vm.OrganizationMember (
  ID uuid primary key default vm.new_id(),
  Login text not null,
  OrganizationID uuid constraint organizationmember_organization_exists references vm.Organization on delete cascade,
  CreatedDate timestamptz not null default clock_timestamp(),
  CreatedBy text not null default session_user,
  constraint organizationmember_is_unique unique nulls not distinct (Login, OrganizationID),
  constraint organizationmember_login_is_not_empty check (Login <> '')
);
comment on table vm.OrganizationMember is
  'Which organizations a login of rosterd_operator or rosterd_viewer sees: each one named, and all below it';
comment on column vm.OrganizationMember.Login is 'Name of a role that can log in, as session_user has it';
comment on column vm.OrganizationMember.OrganizationID is 'The organization, with all below it by ParentOrgID; null = all there are';
comment on column vm.OrganizationMember.CreatedDate is 'When it was made';
comment on column vm.OrganizationMember.CreatedBy is 'Under which login it was made';
create trigger organizationmember_audit after insert or update or delete on vm.OrganizationMember
  for each row execute function vm.audit_row('OrganizationMember');

-- With the rights of the owner, because whoever asks cannot see the organizations before it has answered.
-- PL/pgSQL, because it keeps its plan: row-level security asks it once for each query, those of triggers included, and
-- an operator's INSERT of 100,000 rows took a minute where this was SQL. UNION ends a ring of parents.
create function vm.my_organizations() returns uuid[]
  language plpgsql stable
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
begin
  return array(
    with recursive mine as (
      select o.ID from Organization o
      where exists (
        select from OrganizationMember m
        where m.Login = session_user and (m.OrganizationID = o.ID or m.OrganizationID is null))
      union
      select o.ID from mine join Organization o on o.ParentOrgID = mine.ID
    )
    select ID from mine);
end $f$;
comment on function vm.my_organizations() is 'The organizations this login may see, by OrganizationMember';

-- A policy cannot look into its own table; this can, and sees what its caller sees.
create function vm.sees_job_history(row_id uuid) returns boolean
  language sql stable
  return exists (select from vm.JobHistory h where h.ID = row_id);
comment on function vm.sees_job_history(uuid) is 'Whether this login can see the JobHistory row';

-- AuthInfo is write-only for operators, so its two limits can be read beside it, and set by a function that keeps the
-- rest of AuthInfo.
alter table vm.SourceConfig
  add column Delay bigint not null generated always as (coalesce((AuthInfo ->> 'Delay')::bigint, 0)) stored,
  add column Concurrency int not null generated always as (coalesce((AuthInfo ->> 'Concurrency')::int, 10)) stored;
comment on column vm.SourceConfig.Delay is 'AuthInfo.Delay, or 0; for those who cannot read AuthInfo';
comment on column vm.SourceConfig.Concurrency is 'AuthInfo.Concurrency, or 10; for those who cannot read AuthInfo';

create function vm.limit_source(source_config uuid, delay bigint default null, concurrency int default null) returns void
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
begin
  -- current_user is the owner here; who asks is session_user.
  update SourceConfig s
    set AuthInfo = s.AuthInfo || jsonb_strip_nulls(jsonb_build_object('Delay', limit_source.delay, 'Concurrency', limit_source.concurrency))
    where s.ID = source_config
      and (s.OrganizationID = any (my_organizations()) or pg_has_role(session_user, current_user, 'usage'));
  if not found then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_exists',
      message = format('SourceConfig: there is no row %s', source_config),
      hint = 'select ID, Source, Address, Delay, Concurrency from SourceConfig lists them.';
  end if;
end $f$;
comment on function vm.limit_source(uuid, bigint, int) is
  'Sets Delay (nanoseconds) and Concurrency of a SourceConfig, and keeps the rest of AuthInfo; null = as it is';
revoke execute on function vm.limit_source(uuid, bigint, int), vm.my_organizations() from public;

-- The guard and the stamps ask vm.is_runner() instead of the setting itself, so that `rosterd migrate --roles` can make
-- being a runner a matter of membership too. It is inlined: the runner's legal edges still call no function.
drop trigger jobhistory_guard on vm.JobHistory;
create trigger jobhistory_guard before update on vm.JobHistory
  for each row when (not (
    vm.is_runner()
    and new.ID = old.ID and new.ConfigID = old.ConfigID and new.CreatedDate = old.CreatedDate
    and case old.StatusID
      when 1 then (new.StatusID = 2 and new.Attempt = old.Attempt + 1)
               or (new.StatusID = 1 and new.Attempt = old.Attempt)
               or (new.StatusID in (3, 4) and new.Attempt = old.Attempt and old.WaitingSince is not null)
      when 2 then new.ThreadID is not distinct from old.ThreadID and new.Attempt = old.Attempt and new.StatusID in (2, 3, 4)
               or new.StatusID = 1 and new.Attempt <= old.Attempt
      when -1 then new.Attempt = old.Attempt and new.StatusID in (-1, 5)
      else false end))
  execute function vm.guard_job_history();
alter table vm.JobHistory enable always trigger jobhistory_guard;

drop trigger jobhistory_wake_on_edit on vm.JobHistory;
create trigger jobhistory_wake_on_edit after update of NotBefore on vm.JobHistory
  for each statement when (not vm.is_runner())
  execute function vm.send_wake_hint();
drop trigger jobconfig_stamp on vm.JobConfig;
create trigger jobconfig_stamp before update on vm.JobConfig
  for each row when (not vm.is_runner())
  execute function vm.stamp_update();
drop trigger jobschedule_stamp on vm.JobSchedule;
create trigger jobschedule_stamp before update on vm.JobSchedule
  for each row when (not vm.is_runner())
  execute function vm.stamp_update();
