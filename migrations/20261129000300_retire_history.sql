-- Archived rows are removed when RetentionDays say so and no LegalHold forbids it: a month as a whole, where all of its
-- rows may go, else rows by rows.
--
-- A table of ten million rows is dropped in a moment, but the COMMIT that unlinks its files takes seconds. So a month is
-- first taken off JobHistory, which changes the catalog alone, and renamed to JobHistory_YYYY_MM_removed; from then on no
-- question to JobHistory meets it, and it is dropped by a transaction of its own. Whoever dies between the two leaves a table
-- whose name says what it is waiting for, and the next turn drops it.
--
-- Children may outlive their parent: what ended in October would else be kept by what it started and ended in November,
-- and that by December's, and nothing would ever be removed. Their ParentJobID then names a row that is gone.

-- How each configuration stands in each month, by its index: its first and last row, found without reading those between.
create function vm.month_contents(month regclass)
  returns table (ConfigID uuid, Oldest timestamptz, Newest timestamptz)
  language plpgsql stable
  set search_path = vm, pg_catalog, pg_temp
  set enable_seqscan = off
  set jit = off
as $f$
begin
  return query execute format(
    'with recursive lane as (
       (select h.ConfigID from only %1$s h order by h.ConfigID limit 1)
       union all
       select (select h.ConfigID from only %1$s h where h.ConfigID > l.ConfigID order by h.ConfigID limit 1)
       from lane l where l.ConfigID is not null
     )
     select l.ConfigID,
       (select h.FinishedDate from only %1$s h where h.ConfigID = l.ConfigID order by h.FinishedDate limit 1),
       (select h.FinishedDate from only %1$s h where h.ConfigID = l.ConfigID order by h.FinishedDate desc limit 1)
     from lane l where l.ConfigID is not null', month);
end $f$;
comment on function vm.month_contents(regclass) is 'Oldest and newest row of each configuration in a month table';

-- Why is it still there? With the rights of whoever asks: of rows he does not see it knows nothing but the size of the
-- table.
create function vm.retention_by_month()
  returns table (TableName text, RowsEstimate bigint, Bytes bigint, Oldest timestamptz, Newest timestamptz,
    HeldRows bigint, KeptUntil timestamptz, Reason text)
  language plpgsql stable
  set search_path = vm, pg_catalog, pg_temp
as $f$
declare
  m record;
  held uuid[];
  endless bigint;
  all_configs bigint;
begin
  TableName := 'JobHistory';
  select greatest(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid) into RowsEstimate, Bytes
    from pg_class c where c.oid = 'JobHistory'::regclass;
  HeldRows := 0;
  Reason := 'live rows, and those that ended lately';
  return next;
  for m in select h.Month, h.Began from history_months() h loop
    TableName := 'JobHistory_' || right(m.Month::text, 7);
    select greatest(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid) into RowsEstimate, Bytes
      from pg_class c where c.oid = m.Month;
    select min(c.Oldest), max(c.Newest), max(c.Newest + r.RetentionDays * interval '1 day'),
        array_agg(c.ConfigID) filter (where r.LegalHold),
        count(*) filter (where not r.LegalHold and r.RetentionDays is null), count(*)
      into Oldest, Newest, KeptUntil, held, endless, all_configs
      from month_contents(m.Month) c join config_retention() r on r.ConfigID = c.ConfigID;
    HeldRows := 0;
    if held is not null then
      execute format('select count(*) from only %s h where h.ConfigID = any ($1)', m.Month) into HeldRows using held;
    end if;
    if held is not null or endless > 0 then
      KeptUntil := null;
    end if;
    Reason := case
      when all_configs = 0 then 'no rows'
      when held is not null then format('legal hold on %s of %s configurations', cardinality(held), all_configs)
      when endless > 0 then format('no RetentionDays for %s of %s configurations', endless, all_configs)
      when KeptUntil > clock_timestamp() then 'its rows are not as old as RetentionDays yet'
      else 'expired: it is removed at the next turn that meets nobody who reads it'
    end;
    return next;
  end loop;
  Oldest := null; Newest := null; KeptUntil := null; HeldRows := 0;
  for m in
    select c.oid, c.relname, c.reltuples from pg_class c
    where c.relnamespace = 'vm'::regnamespace and c.relname ~ '^jobhistory_\d{4}_\d{2}_removed$'
      and not exists (select from pg_inherits i where i.inhrelid = c.oid)
  loop
    TableName := 'JobHistory_' || substr(m.relname, 12);
    RowsEstimate := greatest(m.reltuples, 0)::bigint;
    Bytes := pg_total_relation_size(m.oid);
    Reason := 'removed: its files go at the next turn';
    return next;
  end loop;
end $f$;
comment on function vm.retention_by_month() is 'What JobHistoryRetention shows';

create view vm.JobHistoryRetention as
select r.TableName, r.RowsEstimate, r.Bytes, r.Oldest, r.Newest, r.HeldRows, r.KeptUntil, r.Reason
from vm.retention_by_month() r;
comment on view vm.JobHistoryRetention is
  'Why is it still there? For each table of the history: how much it holds, until when it is kept (null = no end is known), and why';

create view vm.JobConfigRetention as
select r.ConfigID, r.OrganizationID, r.RetentionDays, r.LegalHold, r.Reason from vm.config_retention() r;
comment on view vm.JobConfigRetention is 'How long finished rows of each configuration are kept, and whose word that is';

-- What a turn has to do: months that may go as a whole (ConfigID is null), and else configurations with rows in a month
-- that may go.
create function vm.expired_history() returns table (Month text, ConfigID uuid)
  language plpgsql stable
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
declare
  m record;
begin
  for m in
    select h.Month, h.Began from history_months() h
    where exists (
      select from config_retention() r
      where not r.LegalHold and h.Began < clock_timestamp() - r.RetentionDays * interval '1 day')
    order by h.Began
  loop
    return query
      with contents as materialized (
        select c.ConfigID, c.Oldest, c.Newest, coalesce(
          not r.LegalHold and c.Newest < clock_timestamp() - r.RetentionDays * interval '1 day', false) as Goes,
          not r.LegalHold and c.Oldest < clock_timestamp() - r.RetentionDays * interval '1 day' as Begins
        from month_contents(m.Month) c left join config_retention() r on r.ConfigID = c.ConfigID
      )
      select right(m.Month::text, 7), null::uuid where not exists (select from contents c where not c.Goes)
      union all
      select right(m.Month::text, 7), c.ConfigID from contents c
      where c.Begins and exists (select from contents x where not x.Goes);
  end loop;
end $f$;
comment on function vm.expired_history() is 'Months, and configurations in months, whose rows may be removed; for the daemon';

-- Takes a month off JobHistory, if all its rows may go. Its readers are waited for a quarter of a second: while somebody
-- waits for such a lock, those who come later wait behind.
create function vm.detach_expired_month(month text, out Detached boolean, out Rows bigint)
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
  set lock_timeout = '250ms'
as $f$
declare
  name text := 'jobhistory_' || month;
  was regclass;
begin
  Detached := false;
  select h.Month into was from history_months() h where right(h.Month::text, 7) = detach_expired_month.month;
  if was is null or to_regclass(format('vm.%I', name || '_removed')) is not null then
    return;
  end if;
  execute format('lock table %s in access exclusive mode', was);
  -- Nobody sets a hold while this is decided.
  lock table Organization, JobConfig in share row exclusive mode;
  if exists (
      select from month_contents(was) c left join config_retention() r on r.ConfigID = c.ConfigID
      where (not r.LegalHold and c.Newest < clock_timestamp() - r.RetentionDays * interval '1 day') is not true) then
    return;
  end if;
  select greatest(c.reltuples, 0)::bigint into Rows from pg_class c where c.oid = was;
  execute format('alter table %s no inherit vm.JobHistory', was);
  execute format('alter table %s rename to %I', was, name || '_removed');
  execute format('comment on table vm.%I is %L', name || '_removed',
    'Removed from JobHistory, because all of its rows were past their RetentionDays; the daemon drops it');
  Detached := true;
end $f$;
comment on function vm.detach_expired_month(text) is 'Takes a month that is past all RetentionDays off JobHistory; for the daemon';

create function vm.removed_months() returns setof text
  language sql stable
  set search_path = vm, pg_catalog, pg_temp
as $f$
  select substr(c.relname, 12, 7)
  from pg_class c
  where c.relnamespace = 'vm'::regnamespace and c.relkind = 'r' and c.relname ~ '^jobhistory_\d{4}_\d{2}_removed$'
    and not exists (select from pg_inherits i where i.inhrelid = c.oid)
  order by 1
$f$;
comment on function vm.removed_months() is 'Months that were taken off JobHistory and wait to be dropped; for the daemon';

-- What else was written about the rows of a removed month, for the next `most` of them: their steps and log lines. Returns
-- where to go on; null = this was the last.
create function vm.forget_removed_rows(month text, after uuid, most int) returns uuid
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
  set enable_seqscan = off
  set jit = off
as $f$
declare
  ids uuid[];
begin
  if month is null or not exists (select from removed_months() r where r = month) then
    return null;
  end if;
  execute format(
    'select array_agg(n.ID order by n.ID) from (select h.ID from only vm.%I h where h.ID > $1 order by h.ID limit $2) n',
    'jobhistory_' || month || '_removed')
    into ids using coalesce(after, '00000000-0000-0000-0000-000000000000'), most;
  delete from JobEffect e where e.HistoryID = any (ids);
  delete from Logs l where l.JobHistoryID = any (ids);
  return case when cardinality(ids) = most then ids[most] end;
end $f$;
comment on function vm.forget_removed_rows(text, uuid, int) is
  'Removes steps and log lines of rows of a removed month, a batch of it; for the daemon';

create function vm.drop_removed_month(month text) returns void
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
  set lock_timeout = '250ms'
as $f$
begin
  if exists (select from removed_months() r where r = month) then
    execute format('drop table vm.%I', 'jobhistory_' || month || '_removed');
  end if;
end $f$;
comment on function vm.drop_removed_month(text) is 'Drops a month that was taken off JobHistory; for the daemon';

-- The next `most` rows of one configuration in a month that stays.
create function vm.delete_expired_rows(month text, config uuid, most int) returns int
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
  set enable_seqscan = off
  set jit = off
as $f$
declare
  was regclass;
  ids uuid[];
begin
  select h.Month into was from history_months() h where right(h.Month::text, 7) = delete_expired_rows.month;
  if was is null then
    return 0;
  end if;
  -- A hold that is being set right now is waited for, or waits.
  perform from JobConfig c where c.ID = config for share;
  perform from Organization o for share;
  perform set_config('rosterd.moving', 'on', true);
  execute format(
    'with due as (
       select h.ID from only %1$s h, vm.config_retention() r
       where h.ConfigID = $1 and r.ConfigID = $1 and not r.LegalHold
         and h.FinishedDate < clock_timestamp() - r.RetentionDays * interval ''1 day''
       order by h.FinishedDate
       limit $2
       for update of h skip locked),
     gone as (delete from only %1$s h using due d where h.ID = d.ID returning h.ID)
     select array_agg(g.ID) from gone g', was)
    into ids using config, most;
  perform set_config('rosterd.moving', '', true);
  delete from JobEffect e where e.HistoryID = any (ids);
  delete from Logs l where l.JobHistoryID = any (ids);
  return coalesce(cardinality(ids), 0);
end $f$;
comment on function vm.delete_expired_rows(text, uuid, int) is
  'Removes rows of a configuration that are past its RetentionDays, a batch of it; for the daemon';
revoke execute on function vm.expired_history(), vm.detach_expired_month(text), vm.forget_removed_rows(text, uuid, int),
  vm.drop_removed_month(text), vm.delete_expired_rows(text, uuid, int), vm.config_retention() from public;
