-- vm.apply_ignores looked at every detection of its devices, and without a list of devices at every detection of the scanner,
-- although there may be no ignore at all. Now it looks at the devices that an ignore can concern: those with one of their
-- own, those whose detections have one, those that are decommissioned, and all of them only where there is a rule.

create index device_decommissioned on vm.Device (OrganizationID, SourceConfigID) where State = 'decommissioned';

create or replace function vm.apply_ignores(organization uuid, scanner uuid, devices uuid[] default null) returns bigint
  language plpgsql volatile
  set search_path = vm, pg_catalog
as $f$
declare
  has_rule boolean;
  concerned uuid[];
  changed bigint;
begin
  has_rule := exists (
    select from Ignore i
    where i.OrganizationID = organization and i.SourceConfigID = scanner and i.DeviceID is null and i.Active);
  if devices is null and has_rule then
    devices := array(select d.ID from Device d where d.OrganizationID = organization and d.SourceConfigID = scanner);
  elsif devices is null then
    devices := array(
      select i.DeviceID from Ignore i where i.OrganizationID = organization and i.DeviceID is not null and i.Active
      union
      select t.DeviceID from Detection t where t.OrganizationID = organization and t.IgnoreID is not null
      union
      select d.ID from Device d
      where d.OrganizationID = organization and d.SourceConfigID = scanner and d.State = 'decommissioned');
  elsif not has_rule then
    devices := array(
      select i.DeviceID from Ignore i where i.OrganizationID = organization and i.DeviceID = any (devices) and i.Active
      union
      select t.DeviceID from Detection t
      where t.OrganizationID = organization and t.DeviceID = any (devices) and t.IgnoreID is not null
      union
      select d.ID from Device d where d.OrganizationID = organization and d.ID = any (devices) and d.State = 'decommissioned');
  end if;
  if devices = '{}' then
    return 0;
  end if;
  concerned := array(
    select w.DeviceID from wanted_ignores(organization, scanner, devices) w where w.IsNow is distinct from w.ShallBe
    union
    select d.ID from Device d
    where d.OrganizationID = organization and d.SourceConfigID = scanner and d.ID = any (devices)
      and d.State = 'decommissioned'
      and not exists (
        select from Ignore i
        where i.OrganizationID = organization and i.DeviceID = d.ID and i.TypeID = 2 and i.Active
          and coalesce(d.LastAssessed <= coalesce(i.DeviceLastAssessed, '-infinity'), true)));
  if concerned = '{}' then
    return 0;
  end if;
  perform from Device d
    where d.OrganizationID = organization and d.ID = any (concerned)
    order by d.AssetID for no key update;
  -- A decommissioned device that the scanner saw again, by the scanner's own clock.
  update Ignore i set Active = false
    from Device d
    where i.OrganizationID = organization and i.DeviceID = any (concerned) and i.Active and i.TypeID = 2
      and d.OrganizationID = organization and d.ID = i.DeviceID
      and d.LastAssessed > coalesce(i.DeviceLastAssessed, '-infinity');
  update Device d set State = 'unknown', UpdatedDate = clock_timestamp()
    where d.OrganizationID = organization and d.ID = any (concerned) and d.State = 'decommissioned'
      and not exists (
        select from Ignore i
        where i.OrganizationID = organization and i.DeviceID = d.ID and i.TypeID = 2 and i.Active);
  update Detection t set IgnoreID = w.ShallBe, UpdatedDate = clock_timestamp()
    from wanted_ignores(organization, scanner, concerned) w
    where t.OrganizationID = organization and t.ID = w.DetectionID and w.IsNow is distinct from w.ShallBe;
  get diagnostics changed = row_count;
  return changed;
end $f$;

-- The tables of a first import are large before autovacuum has looked at them for the first time, and what the planner
-- takes for a table of a few rows is read in ways that cost many times as much. AssetSyncJob calls this behind its own
-- writes; the daemon does not own the tables, so it may not ANALYZE them itself.
create function vm.analyze_detections() returns void
  language plpgsql volatile
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
declare
  grown text;
begin
  -- By their size: the counts of changed rows come late, from each session up to ten seconds after it wrote.
  for grown in
    select c.relname from pg_class c
    where c.relnamespace = 'vm'::regnamespace and c.relname in ('device', 'detection', 'vulnerabilityinfo')
      and pg_relation_size(c.oid) > current_setting('block_size')::int * (16 + 1.1 * c.relpages)
  loop
    -- Somebody else who is at it does the same.
    execute format('analyze (skip_locked) vm.%I', grown);
  end loop;
end $f$;
comment on function vm.analyze_detections() is
  'Has the planner look again at the tables of detections if they have grown by a tenth; called by AssetSyncJob';
