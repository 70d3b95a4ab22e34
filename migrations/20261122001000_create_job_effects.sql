-- Steps of jobs that act outside, so that a run which is repeated knows what an earlier one did.
--
-- A step is written down before it is done ('intended') and after ('done'). A run that finds 'intended' knows that
-- an earlier one may or may not have done it, and has to ask the outside; the key (row, iteration, step) is the
-- same in every attempt, so that it can.

create table vm.JobEffect (
  HistoryID uuid not null,
  Iteration bigint not null,
  Step text not null,
  State text not null,
  Reference text,
  Attempt int not null,
  RunnerID uuid not null,
  CreatedDate timestamptz not null default clock_timestamp(),
  DoneDate timestamptz,
  constraint jobeffect_pkey primary key (HistoryID, Iteration, Step),
  constraint jobeffect_step_is_a_name check (length(Step) between 1 and 200),
  constraint jobeffect_state_is_known check (State in ('intended', 'done')),
  constraint jobeffect_done_has_a_date check ((State = 'done') = (DoneDate is not null))
);
comment on table vm.JobEffect is 'What jobs did outside, step by step: written before the step and after it';
comment on column vm.JobEffect.HistoryID is 'The row; no foreign key, as in Logs. Deleting the row deletes its steps';
comment on column vm.JobEffect.Iteration is 'JobHistory.CurrentIteration at that time: each iteration has steps of its own';
comment on column vm.JobEffect.State is 'intended: an attempt began it and has not said that it was done; done';
comment on column vm.JobEffect.Reference is 'What the outside called it, such as a ticket number';
comment on column vm.JobEffect.Attempt is 'The attempt that began it last';

create function vm.forget_effects() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  delete from JobEffect where HistoryID in (select ID from gone);
  return null;
end $f$;
create trigger jobhistory_forget_effects after delete on vm.JobHistory
  referencing old table as gone
  for each statement execute function vm.forget_effects();
