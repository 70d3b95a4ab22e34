-- A sealed ClientSecret was bound to the host of Address and was sent to TokenUrl, which anybody who may write AuthInfo
-- sets. It is bound to the host of TokenUrl too from now on, so whoever seals one has to know that host: also operators,
-- who cannot read AuthInfo. And what was sealed for one TokenUrl is not written beside another.

create function vm.token_origin(auth jsonb) returns text
  language sql immutable parallel safe
  set search_path = pg_catalog
as $f$
  select case jsonb_typeof(auth -> 'TokenUrl')
    when 'string' then case when auth ->> 'TokenUrl' = '' then ''
      -- The parser of the client reads the same host from this as from the whole.
      else coalesce(substring(auth ->> 'TokenUrl' from '^[^:/\\?#]*:[/\\]*[^/\\?#]*'), 'not a URL') end
    when 'object' then 'sealed'
    else '' end
$f$;
comment on function vm.token_origin(jsonb) is
  'Scheme, host and port of AuthInfo.TokenUrl; empty without one, and no URL where it is none or sealed';

create function vm.token_url_of(source_config uuid) returns text
  language plpgsql stable
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
begin
  -- current_user is the owner here; who asks is session_user.
  return (select token_origin(s.AuthInfo) from SourceConfig s
    where s.ID = source_config
      and (s.OrganizationID = any (my_organizations())
           and coalesce(pg_has_role(session_user, to_regrole('rosterd_operator')::oid, 'usage'), false)
        or has_column_privilege(session_user, 'vm.sourceconfig', 'authinfo', 'select')));
end $f$;
comment on function vm.token_url_of(uuid) is
  'Scheme, host and port of TokenUrl of a SourceConfig, for those who seal a ClientSecret and cannot read AuthInfo';

drop function vm.seal_source(uuid, text, jsonb, text);
create function vm.seal_source(source_config uuid, field text, sealed jsonb, sealed_for text default null,
  sealed_for_token_url text default null) returns void
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
declare
  address text;
  token_url text;
begin
  if jsonb_typeof(sealed) is distinct from 'object' or coalesce(field, '') = '' then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_sealed_secret_is_whole',
      message = format('SourceConfig: what shall be written to %s of AuthInfo is not a sealed secret', coalesce(nullif(field, ''), 'a field')),
      hint = 'Paste the object as `rosterd secret seal` printed it: {"Sealed": 1, "Key": "...", "Data": "..."}.';
  end if;
  -- current_user is the owner here; who asks is session_user. Where that may do it by itself, it may do it this way.
  select s.Address, token_origin(s.AuthInfo) into address, token_url from SourceConfig s
    where s.ID = source_config
      and (s.OrganizationID = any (my_organizations())
           and coalesce(pg_has_role(session_user, to_regrole('rosterd_operator')::oid, 'usage'), false)
        or has_column_privilege(session_user, 'vm.sourceconfig', 'authinfo', 'select')
           and has_column_privilege(session_user, 'vm.sourceconfig', 'authinfo', 'update'))
    for no key update;
  if not found then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_exists',
      message = format('SourceConfig: there is no row %s', source_config),
      hint = 'select ID, Source, Address from SourceConfig lists them.';
  end if;
  if address <> sealed_for
    or field in ('ClientSecret', 'ClientID', 'Scope', 'Audience') and token_url <> sealed_for_token_url then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_sealed_for_its_address',
      message = format('SourceConfig %s has another %s by now, nothing is written', source_config,
        case when address <> sealed_for then 'Address' else 'TokenUrl' end),
      hint = 'A sealed secret opens for the host it was sealed for alone; seal it again.';
  end if;
  -- Whether the object is whole, the table's own rule says.
  update SourceConfig s set AuthInfo = s.AuthInfo || jsonb_build_object(field, sealed) where s.ID = source_config;
end $f$;
comment on function vm.seal_source(uuid, text, jsonb, text, text) is
  'Puts a sealed secret into a field of AuthInfo of a SourceConfig, and keeps the rest; sealed_for = only if that is its Address, sealed_for_token_url = and that what vm.token_url_of says';
