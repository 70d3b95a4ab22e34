-- Active at every level, in one place: what a runner may claim from right now.
create view vm.ClaimableConfig as
select c.ID, c.JobID, c.MaxInstances
from vm.JobConfig c
join vm.Organization o on o.ID = c.OrganizationID
where c.Active and o.Active
  and not exists (
    select from vm.SourceConfig s
    where not s.Active and s.ID in (c.DataInSourceConfigID, c.DataOutSourceConfigID))
  and not exists (
    select from vm.JobConfigSource x join vm.SourceConfig s on s.ID = x.SourceConfigID
    where x.ConfigID = c.ID and not s.Active);
comment on view vm.ClaimableConfig is 'Configurations whose rows may start: the configuration, its organization and all its sources are active';
