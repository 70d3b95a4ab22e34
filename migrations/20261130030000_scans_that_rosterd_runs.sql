-- Some scanners are programs that rosterd runs itself. The row that runs such a scan is written in the transaction that writes
-- the scan down; when it is over nothing more comes of the scan, so nobody has to wait for what a broken host never sends.

alter table vm.ScanSummary add column RunJobID uuid;
comment on column vm.ScanSummary.RunJobID is
  'JobHistory.ID of the row that runs the scan, where rosterd runs the scanner itself; no foreign key, because history is archived';
