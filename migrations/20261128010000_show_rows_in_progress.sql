-- Finished rows have no index, so what is in progress is found by the claims that hold it. With roles operators may not
-- read whose rows those are (Claim.HistoryIDs); this shows them their own.
create function vm.rows_in_progress() returns setof uuid
  language plpgsql stable
  security definer
  set search_path = vm, pg_catalog, pg_temp
as $f$
begin
  -- current_user is the owner here; who asks is session_user.
  return query
    select i.ID
    from Claim k
    join JobConfig c on c.ID = k.ConfigID
    cross join lateral unnest(k.HistoryIDs) as i (ID)
    where k.Open > 0
      and (has_column_privilege(session_user, 'vm.claim', 'historyids', 'select')
        or c.OrganizationID = any (my_organizations()));
end $f$;
comment on function vm.rows_in_progress() is
  'JobHistory.ID of rows that runners hold, of the organizations this login may see; some may have ended by now';
