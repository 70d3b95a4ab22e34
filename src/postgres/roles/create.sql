-- The four roles. They belong to the whole server, and several databases may share them: what is there is left alone.
do $do$
declare
  wanted text;
begin
  foreach wanted in array '{rosterd_owner,rosterd_runner,rosterd_operator,rosterd_viewer}'::text[] loop
    if to_regrole(wanted) is null then
      begin
        execute format('create role %I nologin', wanted);
      exception when duplicate_object or unique_violation then
        null; -- another database's `migrate --roles` was faster
      end;
    end if;
  end loop;
  if exists (
      select from pg_roles
      where rolname in ('rosterd_runner', 'rosterd_operator', 'rosterd_viewer') and (rolsuper or rolbypassrls)) then
    raise exception 'one of rosterd_runner, rosterd_operator and rosterd_viewer is a superuser or has BYPASSRLS'
      using hint = 'alter role ... nosuperuser nobypassrls; row-level security would hold nothing back.';
  end if;
  -- What the owner's functions do to rows they do as a runner; and whoever owns the tables may run the daemon.
  if not pg_has_role('rosterd_owner', 'rosterd_runner', 'usage') then
    begin
      grant rosterd_runner to rosterd_owner;
    exception when unique_violation then
      null;
    end;
  end if;
  -- To hand the tables over, one must be able to be the new owner; from PostgreSQL 16 on that is SET, and being given
  -- ADMIN alone, as for making the role, is not enough.
  if not pg_has_role(current_user, 'rosterd_owner', 'usage')
      or current_setting('server_version_num')::int >= 160000 and not pg_has_role(current_user, 'rosterd_owner', 'set') then
    execute format('grant rosterd_owner to %I', current_user);
  end if;
end $do$;
