-- Locks the limited lanes before their running rows are counted, so that two runners never count the same
-- room. A lane another runner (or an operator's UPDATE) holds right now is left for the next tick.
select c.ID as "id!"
from JobConfig c
where c.ID = any($1)
order by c.ID
for no key update skip locked
