-- With roles operators can write AuthInfo and not read it, and `AuthInfo = AuthInfo || ...` reads it. So that they can
-- put one sealed secret into a source and keep what else is in it:
create function vm.seal_source(source_config uuid, field text, sealed jsonb, sealed_for text default null) returns void
  language plpgsql
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
declare
  address text;
begin
  if jsonb_typeof(sealed) is distinct from 'object' or coalesce(field, '') = '' then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_sealed_secret_is_whole',
      message = format('SourceConfig: what shall be written to %s of AuthInfo is not a sealed secret', coalesce(nullif(field, ''), 'a field')),
      hint = 'Paste the object as `rosterd secret seal` printed it: {"Sealed": 1, "Key": "...", "Data": "..."}.';
  end if;
  -- current_user is the owner here; who asks is session_user. Where that may do it by itself, it may do it this way.
  select s.Address into address from SourceConfig s
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
  if address <> sealed_for then
    raise exception using errcode = 'check_violation', constraint = 'sourceconfig_sealed_for_its_address',
      message = format('SourceConfig %s has another Address by now, nothing is written', source_config),
      hint = 'A sealed secret opens for the host it was sealed for alone; seal it again.';
  end if;
  -- Whether the object is whole, the table's own rule says.
  update SourceConfig s set AuthInfo = s.AuthInfo || jsonb_build_object(field, sealed) where s.ID = source_config;
end $f$;
comment on function vm.seal_source(uuid, text, jsonb, text) is
  'Puts a sealed secret into a field of AuthInfo of a SourceConfig, and keeps the rest; sealed_for = only if that is its Address';
