-- Fields of AuthInfo may hold sealed secrets: objects that `rosterd secret seal` makes and only the daemon opens.
-- Nobody can see in the database whether one opens, but a paste that lost a letter, or got quotes around it, can be
-- refused at once instead of failing the next row that needs the secret.

create function vm.sealed_problem(auth jsonb) returns text
  language sql immutable parallel safe
  set search_path = pg_catalog
as $f$
  select f.key || case jsonb_typeof(f.value)
      when 'string' then ' in AuthInfo is a text that holds a sealed secret'
      else ' in AuthInfo is no whole sealed secret' end
  from jsonb_each(case when jsonb_typeof(auth) = 'object' then auth else '{}' end) as f
  where case jsonb_typeof(f.value)
      when 'string' then f.value #>> '{}' ~ '^\s*\{\s*"(Sealed|Key|Data)"\s*:'
      when 'object' then exists (select from jsonb_object_keys(f.value) as k where lower(k) = 'sealed')
        and not (f.value -> 'Sealed' is not distinct from '1'
          and coalesce(jsonb_typeof(f.value -> 'Key') = 'string' and f.value ->> 'Key' ~ '^[0-9a-f]{16}$', false)
          and coalesce(jsonb_typeof(f.value -> 'Data') = 'string' and f.value ->> 'Data' ~ '^[A-Za-z0-9+/]{64,}={0,2}$'
            and length(f.value ->> 'Data') % 4 = 0, false)
          and (select count(*) from jsonb_object_keys(f.value)) = 3)
      else false end
  order by f.key
  limit 1
$f$;
comment on function vm.sealed_problem(jsonb) is
  'What is wrong with the first sealed secret in an AuthInfo that is not whole, or null; no value is in it';

-- Not validated: a row that is there already is not read anew by anybody, and must not keep a daemon from starting.
alter table vm.SourceConfig add constraint sourceconfig_sealed_secret_is_whole
  check (vm.sealed_problem(AuthInfo) is null) not valid;

-- The words of the constraint itself would print the whole row.
create function vm.check_sealed_secrets() returns trigger
  language plpgsql
  set search_path = vm, pg_catalog
as $f$
declare
  problem text := sealed_problem(new.AuthInfo);
begin
  if problem is not null then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_sealed_secret_is_whole',
      message = format('SourceConfig %s: %s', new.Source, problem),
      hint = 'Paste the object as `rosterd secret seal` printed it, whole and without quotes around it: '
        || 'update SourceConfig set AuthInfo = AuthInfo || ''{"Password": {"Sealed": 1, "Key": "...", "Data": "..."}}'' where ID = ...';
  end if;
  return new;
end $f$;
comment on function vm.check_sealed_secrets() is 'Refuses a sealed secret that is not whole with a sentence';
-- Its name puts it behind sourceconfig_check, which speaks of Delay and Concurrency first.
create trigger sourceconfig_check_sealed before insert or update on vm.SourceConfig
  for each row execute function vm.check_sealed_secrets();

comment on column vm.SourceConfig.AuthInfo is
  'Credentials, each in plaintext or sealed (rosterd secret seal), and Delay (nanoseconds between the starts of consecutive calls, default 0) and Concurrency (calls in flight at once, default 10), both across every job and runner';
