-- A schedule that was changed by hand is computed anew, and the daemon hears of it at once.
-- Schedules are changed seldom, so a NOTIFY from each change costs nobody anything.
create function vm.check_job_schedule() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  what text := 'JobSchedule ' || coalesce(new.Name, new.ID::text);
  problem text;
begin
  if (new.Cron is null) = (new.TimeOfDay is null) then
    raise exception using errcode = 'check_violation', constraint = 'jobschedule_has_cron_or_timeofday',
      message = format('%s: give either Cron or TimeOfDay', what),
      hint = 'Cron = ''30 2 * * 1-5'', or TimeOfDay = ''02:30'' with DaysOfWeek = ''23456'' (1 = Sunday).';
  end if;
  if new.Cron is not null and new.DaysOfWeek is not null then
    raise exception using errcode = 'check_violation', constraint = 'jobschedule_has_cron_or_timeofday',
      message = format('%s: DaysOfWeek goes with TimeOfDay, not with Cron', what),
      hint = 'Put the days into the fifth field of Cron.';
  end if;
  if new.Cron is not null then
    problem := cron_problem(new.Cron, extract(year from clock_timestamp())::int);
    if problem is not null then
      raise exception using errcode = 'check_violation', constraint = 'jobschedule_cron_is_readable',
        message = format('%s: Cron %L: %s', what, left(new.Cron, 60), problem),
        hint = 'Five fields: minute hour day-of-month month day-of-week, such as ''30 2 * * 1-5''.';
    end if;
  end if;
  if new.TimeOfDay <> date_trunc('second', new.TimeOfDay::interval)::time or new.TimeOfDay = '24:00' then
    raise exception using errcode = 'check_violation', constraint = 'jobschedule_timeofday_is_a_whole_second',
      message = format('%s: TimeOfDay is %s', what, new.TimeOfDay),
      hint = 'Give a time from 00:00:00 to 23:59:59 without fractions of a second.';
  end if;
  problem := days_of_week_problem(new.DaysOfWeek);
  if problem is not null then
    raise exception using errcode = 'check_violation', constraint = 'jobschedule_daysofweek_is_1_to_7',
      message = format('%s: DaysOfWeek %L: %s', what, left(new.DaysOfWeek, 60), problem),
      hint = 'Digits 1 (Sunday) to 7 (Saturday), such as 246 or 2,4,6; null = every day.';
  end if;
  if new.TimeZone is not null then
    new.TimeZone := check_time_zone(new.TimeZone, 'jobschedule_timezone_is_iana');
  end if;
  if new.MissedRun not in ('skip', 'once', 'all') then
    raise exception using errcode = 'check_violation', constraint = 'jobschedule_missedrun_is_skip_once_or_all',
      message = format('%s: MissedRun is %L', what, new.MissedRun), hint = 'Give ''skip'', ''once'' or ''all''.';
  end if;
  if new.Overlap not in ('queue', 'skip', 'cancel_old') then
    raise exception using errcode = 'check_violation', constraint = 'jobschedule_overlap_is_queue_skip_or_cancel_old',
      message = format('%s: Overlap is %L', what, new.Overlap), hint = 'Give ''queue'', ''skip'' or ''cancel_old''.';
  end if;
  if new.JitterSeconds not between 0 and 86400 then
    raise exception using errcode = 'check_violation', constraint = 'jobschedule_jitterseconds_is_0_to_86400',
      message = format('%s: JitterSeconds is %s', what, new.JitterSeconds), hint = 'Give 0 to 86400 seconds.';
  end if;
  -- To be computed by the daemon.
  new.NextRun := null;
  new.Error := null;
  return new;
end $f$;
create trigger jobschedule_check before insert or update of ConfigID, DaysOfWeek, TimeOfDay, Cron, TimeZone, MissedRun,
    Overlap, JitterSeconds, Active, Name on vm.JobSchedule
  for each row execute function vm.check_job_schedule();
create trigger jobschedule_stamp before update on vm.JobSchedule
  for each row when (coalesce(current_setting('rosterd.actor', true), '') <> 'runner')
  execute function vm.stamp_update();

create function vm.hint_schedules() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  perform pg_notify('rosterd_wake', 'schedule');
  return null;
end $f$;
create trigger jobschedule_hint after insert or delete or update of ConfigID, DaysOfWeek, TimeOfDay, Cron, TimeZone,
    MissedRun, Overlap, JitterSeconds, Active on vm.JobSchedule
  for each statement execute function vm.hint_schedules();

-- Schedules without a zone of their own follow their organization's.
create function vm.follow_organization_time_zone() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
begin
  update JobSchedule s
    set NextRun = null, Error = null
    from JobConfig c
    where c.ID = s.ConfigID and c.OrganizationID = new.ID and s.TimeZone is null;
  perform pg_notify('rosterd_wake', 'schedule');
  return null;
end $f$;
create trigger organization_time_zone after update of TimeZone on vm.Organization
  for each row when (old.TimeZone is distinct from new.TimeZone)
  execute function vm.follow_organization_time_zone();
