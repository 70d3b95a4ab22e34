-- Every claim of more than some hundred rows tried to compress the IDs of its rows, and random bits do not get smaller:
-- three parts in a hundred of what a claim computes.
alter table vm.Claim alter column HistoryIDs set storage external;
