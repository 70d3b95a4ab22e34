-- What of vm is not as `migrate --roles` leaves it: made, or made anew, since then. One sentence each.
select format('table %s has no row-level security', c.relname)
from pg_class c
where c.relnamespace = 'vm'::regnamespace and c.relkind in ('r', 'p')
  and not (c.relrowsecurity and exists (select from pg_policy p where p.polrelid = c.oid and p.polname = 'runner'))
union all
select format('%s does not belong to rosterd_owner', c.relname)
from pg_class c
where c.relnamespace = 'vm'::regnamespace and c.relkind in ('r', 'p', 'v') and c.relowner <> to_regrole('rosterd_owner')
union all
select format('view %s shows what its owner sees', c.relname)
from pg_class c
where c.relnamespace = 'vm'::regnamespace and c.relkind = 'v' and not coalesce('security_invoker=true' = any (c.reloptions), false)
union all
select format('function %s can be called by everybody', p.proname)
from pg_proc p
where p.pronamespace = 'vm'::regnamespace
  and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0)
union all
select format('function %s searches temporary tables first', p.proname)
from pg_proc p
where p.pronamespace = 'vm'::regnamespace and p.prosqlbody is null
  and not exists (select from unnest(p.proconfig) as s (setting) where s.setting ~ '^search_path=.*pg_temp$')
union all
select format('function %s acts with its caller''s rights', p.proname)
from pg_proc p
where p.pronamespace = 'vm'::regnamespace and not p.prosecdef
  and p.proname in ('guard_job_history', 'follow_cancel', 'send_wake_hint', 'apply_job_config', 'check_job_config_source',
    'forget_effects', 'check_parent', 'check_archived_rows',
    'keep_what_is_needed', 'keep_ticket_history')
union all
select 'function is_runner believes a setting alone'
from pg_proc p
where p.oid = to_regprocedure('vm.is_runner()') and pg_get_function_sqlbody(p.oid) not like '%rosterd_runner%'
