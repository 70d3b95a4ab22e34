-- Who owns work, and which outside systems it talks to.
--
-- Names are created unquoted so that every spelling an operator types works; the
-- database's search_path gets `vm`, so that the schema prefix is optional.

create schema if not exists vm;

do $do$
begin
  execute format('alter database %I set search_path = "$user", public, vm', current_database());
exception when insufficient_privilege then
  raise warning 'the owner of database % must run: alter database % set search_path = "$user", public, vm',
    current_database(), current_database();
end $do$;

-- A time-ordered UUID (version 7): keys made in a row lie beside each other in
-- the index, and equal priorities fall into the order of their INSERTs.
-- The twelve bits after the version hold the fraction of the millisecond (RFC 9562, method 3).
create function vm.new_id() returns uuid
  language sql volatile parallel safe
  return (
    select encode(
      substring(int8send(t.micros / 1000) from 3)
      || substring(int8send(28672 + (t.micros % 1000) * 4096 / 1000) from 7)
      || set_byte(substring(t.noise from 9), 0, get_byte(t.noise, 8) & 63 | 128), 'hex')::uuid
    from (select (extract(epoch from clock_timestamp()) * 1000000)::bigint as micros,
                 uuid_send(gen_random_uuid()) as noise) as t);
comment on function vm.new_id() is 'A time-ordered UUID (version 7), the default of every ID';

-- What is wrong with a JSON document an operator gave, as a sentence, or null.
-- The rules: an object, at most 1 MiB as PostgreSQL prints it, at most 100 levels deep,
-- numbers that fit a double. The last one because 1e131071 takes 12 bytes in a
-- jsonb and prints as 131,072 digits: 9 KB of them would come back as 131 MB.
-- The cheap checks come first, so that no bomb is ever printed to be measured.
create function vm.payload_problem(payload jsonb) returns text
  language plpgsql immutable
  set search_path = pg_catalog
as $f$
begin
  if payload is null or payload = '{}' then
    return null;
  end if;
  if jsonb_typeof(payload) <> 'object' then
    return format('must be a JSON object such as {"key": "value"}, not %s',
      case jsonb_typeof(payload) when 'array' then 'an array' when 'null' then 'null'
      else 'a ' || jsonb_typeof(payload) end);
  end if;
  if pg_column_size(payload) > 8 * 1048576 then
    return 'is larger than 1 MiB; store large input elsewhere and pass a reference';
  end if;
  if jsonb_path_exists(payload, 'strict $.**{101}') then
    return 'is nested more than 100 levels deep';
  end if;
  if jsonb_path_exists(payload, 'strict $.** ? (@.type() == "number" &&
      (@ > 1e308 || @ < -1e308 || (@ > 0 && @ < 1e-307) || (@ < 0 && @ > -1e-307)))') then
    return 'holds a number beyond the range of a double (about 1e-307 to 1e308); write it as a string';
  end if;
  if octet_length(payload::text) > 1048576 then
    return format('is %s bytes, at most 1048576 (1 MiB) are allowed; store large input elsewhere and pass a reference',
      octet_length(payload::text));
  end if;
  return null;
end $f$;
comment on function vm.payload_problem(jsonb) is 'The sentence that says what is wrong with a payload, or null';

-- The trigger functions below raise such sentences under the name of the constraint they stand for,
-- before the row reaches the constraint itself, whose own message would print the whole row (and its secrets).
create function vm.check_time_zone(zone text, constraint_name text) returns text
  language plpgsql stable
  set search_path = pg_catalog
as $f$
declare
  spelling text;
begin
  -- Not what the server finds in its zone folder besides the IANA names: copies, and names that mean another
  -- zone on each machine.
  select name into spelling from pg_timezone_names
    where lower(name) = lower(zone) and name !~ '^(posix/|right/|posixrules$|localtime$|Factory$)' limit 1;
  if not found then
    raise exception using errcode = 'check_violation', constraint = constraint_name,
      message = format('TimeZone %L is not a time zone', zone),
      hint = 'Use an IANA name such as UTC, Europe/Berlin or America/New_York; select name from pg_timezone_names lists them.';
  end if;
  return spelling;
end $f$;

-- UpdatedDate and UpdatedBy say who changed a row by hand; the daemon's own
-- bookkeeping (LastJobStart, NextRun) is no such change.
create function vm.stamp_update() returns trigger
  language plpgsql
  set search_path = pg_catalog
as $f$
begin
  new.UpdatedDate := clock_timestamp();
  new.UpdatedBy := session_user;
  return new;
end $f$;

create table vm.Organization (
  ID uuid primary key default vm.new_id(),
  ParentOrgID uuid constraint organization_parent_exists references vm.Organization,
  Code text not null,
  Description text,
  Payload jsonb not null default '{}',
  TimeZone text not null default 'UTC',
  Active boolean not null default true,
  CreatedDate timestamptz not null default clock_timestamp(),
  CreatedBy text not null default session_user,
  UpdatedDate timestamptz,
  UpdatedBy text,
  constraint organization_code_is_unique unique (Code),
  constraint organization_code_is_not_empty check (Code <> ''),
  constraint organization_is_not_its_own_parent check (ParentOrgID <> ID)
);
comment on table vm.Organization is 'A tenant: every configuration, source and row of work belongs to one';
comment on column vm.Organization.Code is 'Short name, shown in log lines: [TicketingJob:NORTON:...]';
comment on column vm.Organization.TimeZone is 'IANA zone in which its schedules fire, unless the schedule names its own';
comment on column vm.Organization.Active is 'false: nothing of this organization starts';

create function vm.check_organization() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  problem text := payload_problem(new.Payload);
begin
  if problem is not null then
    raise exception using errcode = 'check_violation', constraint = 'organization_payload_is_acceptable',
      message = format('Organization %s: Payload %s', new.Code, problem);
  end if;
  new.TimeZone := check_time_zone(new.TimeZone, 'organization_timezone_is_iana');
  return new;
end $f$;
create trigger organization_check before insert or update of Payload, TimeZone on vm.Organization
  for each row execute function vm.check_organization();
create trigger organization_stamp before update on vm.Organization
  for each row execute function vm.stamp_update();

create table vm.SourceType (
  ID int generated by default as identity primary key,
  Type text not null,
  constraint sourcetype_type_is_unique unique (Type)
);
comment on table vm.SourceType is 'What a source can do for a job: Scanner, TicketEngine, Cloud, ...';

create table vm.Source (
  ID uuid primary key default vm.new_id(),
  SourceTypeID int not null constraint source_type_exists references vm.SourceType,
  Source text not null,
  constraint source_source_is_unique unique (Source)
);
comment on table vm.Source is 'The outside systems rosterd knows: JIRA, Nexpose, Qualys, ...';

insert into vm.SourceType (ID, Type) values
  (1, 'Scanner'), (2, 'TicketEngine'), (3, 'Cloud'), (4, 'CISBench'), (5, 'ImageScanner'),
  (6, 'API'), (7, 'Database');
select setval(pg_get_serial_sequence('vm.SourceType', 'id'), 100);

insert into vm.Source (SourceTypeID, Source) values
  (1, 'Nexpose'), (1, 'Qualys'), (1, 'OpenSCAP'),
  (2, 'JIRA'), (2, 'ServiceNow'), (2, 'Local'),
  (3, 'AWS'), (3, 'Azure'),
  (4, 'Dome9'), (4, 'CloudView'),
  (5, 'Aqua'),
  (6, 'HTTP'),
  (7, 'PostgreSQL');

create table vm.SourceConfig (
  ID uuid primary key default vm.new_id(),
  Source text not null,
  SourceID uuid not null constraint sourceconfig_source_is_known references vm.Source,
  OrganizationID uuid not null constraint sourceconfig_organization_exists references vm.Organization,
  Address text not null default '',
  Port int,
  AuthInfo jsonb not null default '{}',
  Payload jsonb not null default '{}',
  Active boolean not null default true,
  CreatedDate timestamptz not null default clock_timestamp(),
  CreatedBy text not null default session_user,
  UpdatedDate timestamptz,
  UpdatedBy text,
  constraint sourceconfig_belongs_to_an_organization unique (OrganizationID, ID),
  constraint sourceconfig_port_is_1_to_65535 check (Port between 1 and 65535),
  constraint sourceconfig_authinfo_is_an_object check (jsonb_typeof(AuthInfo) = 'object'),
  constraint sourceconfig_delay_is_0_to_3600000000000_nanoseconds check (
    not AuthInfo ? 'Delay' or ((AuthInfo -> 'Delay')::text ~ '^[0-9]{1,13}$'
      and (AuthInfo -> 'Delay')::text::bigint <= 3600000000000)),
  constraint sourceconfig_concurrency_is_1_to_1024 check (
    not AuthInfo ? 'Concurrency' or ((AuthInfo -> 'Concurrency')::text ~ '^[0-9]{1,4}$'
      and (AuthInfo -> 'Concurrency')::text::bigint between 1 and 1024))
);
comment on table vm.SourceConfig is 'One credentialed connection to an outside system, with how hard it may be hit';
comment on column vm.SourceConfig.AuthInfo is
  'Credentials, and Delay (nanoseconds between the starts of consecutive calls, default 0) and Concurrency (calls in flight at once, default 10), both across every job and runner';
comment on column vm.SourceConfig.Payload is 'Settings of the connector';
comment on column vm.SourceConfig.Active is 'false: jobs that use this source do not start';

create function vm.check_source_config() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  problem text;
  known record;
  delay text := (new.AuthInfo -> 'Delay')::text;
  concurrency text := (new.AuthInfo -> 'Concurrency')::text;
  missing text;
begin
  -- The name and the id of the source say the same; either is enough.
  if tg_op = 'UPDATE' and new.Source is distinct from old.Source and new.SourceID is not distinct from old.SourceID then
    new.SourceID := null;
  elsif tg_op = 'UPDATE' and new.SourceID is distinct from old.SourceID then
    new.Source := null;
  end if;
  select s.ID, s.Source into known from vm.Source s
    where case when new.SourceID is null then lower(s.Source) = lower(new.Source) else s.ID = new.SourceID end;
  if not found then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_source_is_known',
      message = format('SourceConfig: there is no source %L', coalesce(new.Source, new.SourceID::text)),
      hint = 'Known sources: ' || (select string_agg(s.Source, ', ' order by s.Source) from vm.Source s) || '.';
  end if;
  if new.SourceID is not null and new.Source is not null and lower(new.Source) <> lower(known.Source) then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_source_is_known',
      message = format('SourceConfig: SourceID is that of %s, but Source says %s', known.Source, new.Source),
      hint = 'Give one of the two.';
  end if;
  new.SourceID := known.ID;
  new.Source := known.Source;

  -- PostgreSQL's own words for these would print the whole row, AuthInfo and all.
  missing := case when new.ID is null then 'ID' when new.OrganizationID is null then 'OrganizationID'
    when new.Address is null then 'Address' when new.Active is null then 'Active'
    when new.CreatedDate is null then 'CreatedDate' when new.CreatedBy is null then 'CreatedBy' end;
  if missing is not null then
    raise exception using errcode = 'not_null_violation', column = lower(missing),
      message = format('SourceConfig %s: %s is null', new.Source, missing),
      hint = format('Give %s a value.', missing);
  end if;
  if new.Port not between 1 and 65535 then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_port_is_1_to_65535',
      message = format('SourceConfig %s: Port is %s', new.Source, new.Port),
      hint = 'Give 1 to 65535, or null for the usual port of the source.';
  end if;

  new.AuthInfo := coalesce(new.AuthInfo, '{}');
  new.Payload := coalesce(new.Payload, '{}');
  problem := payload_problem(new.AuthInfo);
  if problem is not null then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_authinfo_is_an_object',
      message = format('SourceConfig %s: AuthInfo %s', new.Source, problem),
      hint = 'Example: {"Username": "svc", "Password": "...", "Delay": 1000000, "Concurrency": 4}';
  end if;
  problem := payload_problem(new.Payload);
  if problem is not null then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_payload_is_acceptable',
      message = format('SourceConfig %s: Payload %s', new.Source, problem);
  end if;
  if new.AuthInfo ? 'Delay' and not (delay ~ '^[0-9]{1,13}$' and delay::bigint <= 3600000000000) then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_delay_is_0_to_3600000000000_nanoseconds',
      message = format('SourceConfig %s: Delay in AuthInfo is %s', new.Source, left(delay, 40)),
      hint = 'Give a whole number of nanoseconds from 0 to 3600000000000 (one hour), without quotes; 1000000000 is one second.';
  end if;
  if new.AuthInfo ? 'Concurrency'
     and not (concurrency ~ '^[0-9]{1,4}$' and concurrency::bigint between 1 and 1024) then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_concurrency_is_1_to_1024',
      message = format('SourceConfig %s: Concurrency in AuthInfo is %s', new.Source, left(concurrency, 40)),
      hint = 'Give a whole number of calls from 1 to 1024, without quotes; to stop all calls set Active = false.';
  end if;
  return new;
end $f$;
create trigger sourceconfig_check before insert or update on vm.SourceConfig
  for each row execute function vm.check_source_config();
create trigger sourceconfig_stamp before update on vm.SourceConfig
  for each row execute function vm.stamp_update();
