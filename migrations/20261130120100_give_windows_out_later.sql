-- Behind the window of another runner the next one was given out 30 milliseconds before it begins. At a Delay of 5 to 10
-- milliseconds that is before the last call of the first window has started, so what was left of that window was lost
-- with each turn. Now it is given out only so long before as the runner needs to hear of it (slack: three milliseconds
-- and how long its last question took), and a window that was given back meanwhile lets it begin earlier.

do $do$
declare
  body text := pg_get_functiondef('vm.share_source'::regproc);
  old constant text := 'soon constant double precision := 0.03;';
begin
  -- One line of three hundred, which stay as they are.
  if strpos(body, old) = 0 then
    raise exception 'vm.share_source is not what migration 20261130000200 made it; restore it and migrate again';
  end if;
  execute replace(body, old, 'soon constant double precision := least(0.03, greatest(0.004, slack));');
end $do$;
