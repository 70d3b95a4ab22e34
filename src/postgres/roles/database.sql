-- The rest of what belongs to a database: its schema, views and functions, and to whom it all belongs.
do $do$
declare
  o record;
begin
  -- A table that somebody put before ours would be taken for ours.
  if has_schema_privilege('public', 'public', 'create') then
    begin
      revoke create on schema public from public;
    exception when insufficient_privilege then
      raise warning 'everybody may create tables in schema public, which is searched before vm; its owner should: revoke create on schema public from public';
    end;
  end if;

  if (select n.nspowner <> 'rosterd_owner'::regrole from pg_namespace n where n.nspname = 'vm') then
    alter schema vm owner to rosterd_owner;
  end if;
  grant usage on schema vm to rosterd_runner, rosterd_operator, rosterd_viewer;

  for o in
    select c.relname, c.relkind, c.relowner from pg_class c
    where c.relnamespace = 'vm'::regnamespace and c.relkind in ('r', 'p', 'v')
    order by c.relname
  loop
    if o.relowner <> 'rosterd_owner'::regrole then
      execute format('alter table vm.%I owner to rosterd_owner', o.relname);
    end if;
    if o.relkind = 'v' then
      -- A view that asked with its owner's rights would show everybody everything.
      execute format('alter view vm.%I set (security_invoker = true)', o.relname);
      execute format('revoke all on vm.%I from public, rosterd_runner, rosterd_operator, rosterd_viewer', o.relname);
      execute format('grant select on vm.%I to rosterd_runner, rosterd_operator, rosterd_viewer', o.relname);
    end if;
  end loop;

  for o in
    select p.oid::regprocedure as signature, p.proname, p.proowner, p.prorettype = 'trigger'::regtype as is_trigger,
      p.prosecdef, p.prosqlbody is not null as is_bound,
      (select substr(s.setting, length('search_path=') + 1) from unnest(p.proconfig) as s (setting)
       where s.setting like 'search_path=%') as search_path
    from pg_proc p
    where p.pronamespace = 'vm'::regnamespace and p.prokind = 'f'
    order by p.oid
  loop
    if o.proowner <> 'rosterd_owner'::regrole then
      execute format('alter function %s owner to rosterd_owner', o.signature);
    end if;
    -- Where it is not named last, a caller's temporary tables are searched first.
    if o.search_path is not null and o.search_path !~ 'pg_temp$' then
      execute format('alter function %s set search_path = %s, pg_temp', o.signature, o.search_path);
    elsif o.search_path is null and not o.is_bound then
      execute format('alter function %s set search_path = vm, pg_catalog, pg_temp', o.signature);
    end if;
    execute format('revoke all on function %s from public, rosterd_runner, rosterd_operator, rosterd_viewer', o.signature);
    if o.is_trigger then
      -- Nobody may hang a trigger of ours on a table of their own. These write where their callers may not, or must
      -- see the rows of every organization.
      if o.proname in ('guard_job_history', 'follow_cancel', 'send_wake_hint', 'apply_job_config',
          'check_job_config_source', 'forget_effects', 'check_parent',
          'check_archived_rows', 'keep_what_is_needed', 'keep_ticket_history') then
        execute format('alter function %s security definer', o.signature);
      end if;
    elsif o.prosecdef then
      if o.proname = 'my_organizations' then
        execute format('grant execute on function %s to rosterd_operator, rosterd_viewer', o.signature);
      elsif o.proname in ('rows_in_progress', 'config_retention') then
        execute format('grant execute on function %s to rosterd_runner, rosterd_operator, rosterd_viewer', o.signature);
      elsif o.proname = 'check_id_is_new' then
        execute format('grant execute on function %s to rosterd_runner, rosterd_operator', o.signature);
      elsif o.proname in ('archive_history', 'expired_history', 'detach_expired_month', 'forget_removed_rows',
          'drop_removed_month', 'delete_expired_rows', 'analyze_detections') then
        execute format('grant execute on function %s to rosterd_runner', o.signature);
      elsif o.proname in ('limit_source', 'seal_source', 'token_url_of') then
        execute format('grant execute on function %s to rosterd_operator', o.signature);
      end if;
    else
      -- They can do no more than their callers.
      execute format('grant execute on function %s to rosterd_runner, rosterd_operator, rosterd_viewer', o.signature);
    end if;
  end loop;
end $do$;

-- Whoever is no member of rosterd_runner is no runner, whatever the setting says. One expression, so that it is inlined.
create or replace function vm.is_runner() returns boolean
  language sql stable parallel safe
  return coalesce(current_setting('rosterd.actor', true), '') = 'runner'
    and pg_has_role(current_user, 'rosterd_runner', 'usage');
