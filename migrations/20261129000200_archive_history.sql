-- Finished rows move, a while after they ended, from JobHistory into the table of the month (UTC) in which they ended. A
-- runner asks for it (engine/retire.rs), the functions do it with the rights of the owner: they make tables, and nobody
-- but the owner may delete a row.

-- The months there are, oldest first.
create function vm.history_months() returns table (Month regclass, Began timestamptz)
  language sql stable
  set search_path = vm, pg_catalog, pg_temp
as $f$
  select c.oid::regclass, make_timestamptz(substr(c.relname, 12, 4)::int, right(c.relname, 2)::int, 1, 0, 0, 0, 'UTC')
  from pg_inherits i join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'vm.JobHistory'::regclass and c.relname ~ '^jobhistory_\d{4}_\d{2}$'
    and c.relnamespace = 'vm'::regnamespace
  order by c.relname
$f$;
comment on function vm.history_months() is 'The month tables of JobHistory';

-- Who may read JobHistory may read a month of it, and the same rows. Run for a new month, and for all of them by
-- `migrate --roles`; where that was never run there is nothing to copy.
create function vm.copy_rights_to_month(month regclass) returns void
  language plpgsql
  set search_path = vm, pg_catalog, pg_temp
as $f$
declare
  p record;
begin
  if not exists (select from pg_policy x where x.polrelid = 'JobHistory'::regclass and x.polname = 'runner') then
    return;
  end if;
  execute format('alter table %s enable row level security', month);
  execute format('revoke all on %s from public, rosterd_runner, rosterd_operator, rosterd_viewer', month);
  execute format('grant select on %s to rosterd_runner, rosterd_operator, rosterd_viewer', month);
  for p in
    select x.polname, pg_get_expr(x.polqual, x.polrelid) as rule,
      (select string_agg(quote_ident(r.rolname), ', ') from pg_roles r where r.oid = any (x.polroles)) as roles
    from pg_policy x
    where x.polrelid = 'JobHistory'::regclass and x.polname in ('runner', 'sees')
  loop
    execute format('drop policy if exists %I on %s', p.polname, month);
    execute format('create policy %I on %s for select to %s using (%s)', p.polname, month, p.roles, p.rule);
  end loop;
end $f$;
comment on function vm.copy_rights_to_month(regclass) is 'Grants and row-level security of JobHistory, for a month of it';

-- The table of a month such as 2026_11, made if there is none.
create function vm.month_table(month text) returns regclass
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
  -- The lock that making a table below another takes keeps vacuum away from it for a moment, and nobody else.
  set lock_timeout = '2s'
as $f$
declare
  name text := 'jobhistory_' || month;
  there regclass;
  began timestamptz;
  said record;
begin
  if month is null or month !~ '^\d{4}_(0[1-9]|1[0-2])$' then
    raise exception using errcode = 'invalid_parameter_value',
      message = format('JobHistory: %L is not a month', month), hint = 'Give a year and a month, such as 2026_11.';
  end if;
  there := to_regclass(format('vm.%I', name));
  if there is not null then
    return there;
  end if;
  began := make_timestamptz(left(month, 4)::int, right(month, 2)::int, 1, 0, 0, 0, 'UTC');
  -- Columns, their defaults and the CHECKs are inherited. Written once and never changed, so its pages are filled.
  execute format(
    'create table vm.%1$I (
       constraint %2$I primary key (ID),
       constraint %3$I check (StatusID in (3, 4, 5) and FinishedDate >= %4$L and FinishedDate < %5$L)
     ) inherits (vm.JobHistory)',
    name, name || '_pkey', name || '_has_rows_that_ended_in_it', began,
    (began at time zone 'UTC' + interval '1 month') at time zone 'UTC');
  -- Operators ask for the runs of a configuration, retention and a deleted JobConfig too.
  execute format('create index %I on vm.%I (ConfigID, FinishedDate)', name || '_config', name);
  execute format('create index %I on vm.%I (ParentJobID) where ParentJobID is not null', name || '_parent', name);
  execute format('create unique index %I on vm.%I (ScheduleID, DueDate) where ScheduleID is not null',
    name || '_one_row_per_due_date', name);
  -- Row triggers are not inherited; those for statements are asked only where a statement names this table.
  execute format('create trigger jobhistory_guard before update on vm.%I for each row execute function vm.guard_job_history()', name);
  execute format(
    'create trigger jobhistory_say_left_alone after update on vm.%I for each statement
       when (coalesce(current_setting(''rosterd.left_alone'', true), '''') <> '''') execute function vm.say_left_alone()',
    name);
  execute format(
    'create trigger jobhistory_forget_effects after delete on vm.%I referencing old table as gone for each statement
       when (coalesce(current_setting(''rosterd.moving'', true), '''') <> ''on'') execute function vm.forget_effects()',
    name);
  execute format(
    'create trigger jobhistory_keep_what_is_needed after delete on vm.%I referencing old table as gone for each statement
       when (coalesce(current_setting(''rosterd.moving'', true), '''') <> ''on'') execute function vm.keep_what_is_needed()',
    name);
  execute format('create trigger jobhistory_no_truncate before truncate on vm.%I for each statement execute function vm.refuse_truncate()', name);
  execute format(
    'alter table vm.%I enable always trigger jobhistory_guard, enable always trigger jobhistory_keep_what_is_needed,
       enable always trigger jobhistory_no_truncate', name);
  execute format('comment on table vm.%I is %L', name,
    format('Rows of JobHistory that ended in %s (UTC). JobHistory shows them too', replace(month, '_', '-')));
  for said in
    select a.attname, col_description(a.attrelid, a.attnum) as what from pg_attribute a
    where a.attrelid = 'vm.JobHistory'::regclass and a.attnum > 0 and not a.attisdropped
      and col_description(a.attrelid, a.attnum) is not null
  loop
    execute format('comment on column vm.%I.%I is %L', name, said.attname, said.what);
  end loop;
  perform copy_rights_to_month(format('vm.%I', name)::regclass);
  return format('vm.%I', name)::regclass;
end $f$;
comment on function vm.month_table(text) is 'The table with the rows that ended in a month such as 2026_11; made if there is none';

-- Looks at the next `most` rows of JobHistory behind the ID `after`, and moves those that finished longer than
-- `older_than` ago. Returns how many, and where to go on; null = this was the last. Moved is null where another runner is at
-- it right now: of several one goes on and the others leave it their turn. That saves double work and no more: without the
-- lock they would skip each other's rows. It ends with the statement, so that no pooler can keep it.
--
-- FinishedDate has no index (the last write of a row is heap-only because of that), but IDs tell the time: a row
-- that ended before some moment was inserted before it, so its ID is below that moment's. IDs of another kind stand
-- anywhere, nearly all of them above those of today. So a pass goes from the first ID to that moment's, and then from
-- tomorrow's to the last; what lies between is young. What is parked or lives for years is passed over in each pass.
--
-- A statement that began before the move sees the rows where they were, one that begins after it sees them here, none
-- sees them twice or not at all. Rows that somebody holds locked are left for the next pass.
create function vm.archive_history(older_than interval, after uuid, most int, out Moved int, out LastID uuid)
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
  set enable_seqscan = off
  set jit = off
as $f$
declare
  began constant timestamptz := clock_timestamp();
  young constant uuid := id_floor(began - older_than);
  tomorrow constant uuid := id_floor(began + interval '1 day');
  seen uuid[];
  due uuid[];
  upto uuid;
  columns text;
  part record;
  n int;
begin
  if (older_than >= interval '6 minutes') is not true then
    raise exception using errcode = 'invalid_parameter_value',
      message = format('JobHistory: rows cannot be archived %s after they finished', coalesce(older_than::text, 'null')),
      hint = 'Give six minutes or more (engine.archive_after_hours): until its ID is five minutes old, an INSERT does not look for it in the months.';
  end if;
  if (most between 1 and 100000) is not true then
    raise exception using errcode = 'invalid_parameter_value',
      message = format('JobHistory: a batch of %s rows', coalesce(most::text, 'null')), hint = 'Give 1 to 100000.';
  end if;
  if not pg_try_advisory_xact_lock(hashtextextended('rosterd retention', 20261129)) then
    return;
  end if;
  Moved := 0;
  after := coalesce(after, '00000000-0000-0000-0000-000000000000');
  upto := case when after < young then young else 'ffffffff-ffff-ffff-ffff-ffffffffffff' end;

  select array_agg(w.ID order by w.ID),
      array_agg(w.ID) filter (where w.StatusID in (3, 4, 5) and w.FinishedDate between '1970-01-01 00:00:00+00' and began - older_than
        and (substr(w.ID::text, 15, 1) <> '7' or w.ID < id_floor(began - interval '5 minutes')))
    into seen, due
    from (
      select h.ID, h.StatusID, h.FinishedDate
      from only JobHistory h
      where h.ID > after and h.ID <= upto
      order by h.ID
      limit most) w;
  LastID := case
    when cardinality(seen) = most then seen[most]
    when after < young then tomorrow
  end;
  if due is null then
    return;
  end if;

  -- What is generated cannot be inserted.
  select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into columns
    from pg_attribute a
    where a.attrelid = 'JobHistory'::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = '';
  perform set_config('rosterd.moving', 'on', true);
  for part in
    select to_char(l.FinishedDate at time zone 'UTC', 'YYYY_MM') as Month, array_agg(l.ID) as IDs
    from (
      select h.ID, h.FinishedDate from only JobHistory h
      where h.ID = any (due) and h.StatusID in (3, 4, 5)
      for update skip locked) l
    group by 1
    order by 1
  loop
    execute format(
      'with gone as (delete from only JobHistory h where h.ID = any ($1) returning %1$s)
       insert into %2$s (%1$s) select %1$s from gone',
      columns, month_table(part.Month))
      using part.IDs;
    get diagnostics n = row_count;
    Moved := Moved + n;
  end loop;
  perform set_config('rosterd.moving', '', true);
end $f$;
comment on function vm.archive_history(interval, uuid, int) is
  'Moves finished rows of JobHistory to the tables of their months, a batch of it; for the daemon';
revoke execute on function vm.archive_history(interval, uuid, int), vm.month_table(text),
  vm.copy_rights_to_month(regclass) from public;
