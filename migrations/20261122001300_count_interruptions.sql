-- How often the database went away under a run of this row since its iteration began. Such an attempt is not counted,
-- so something else must bound a job whose own statement brings the server down: ten of them, see
-- src/history/settle.sql. Constant default: no row is rewritten. A daemon of the version before leaves the column alone.
alter table vm.JobHistory add column Interruptions int not null default 0;
comment on column vm.JobHistory.Interruptions is 'Times the database went away under a run of this iteration; not counted as attempts';

-- As for Attempt and Crashes, an INSERT has no say in it.
create function vm.begin_uninterrupted() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  new.Interruptions := 0;
  return new;
end $f$;
create trigger jobhistory_begin_uninterrupted before insert on vm.JobHistory
  for each row when (new.Interruptions is distinct from 0)
  execute function vm.begin_uninterrupted();
alter table vm.JobHistory enable always trigger jobhistory_begin_uninterrupted;
