//! `OpenScapRunJob`: the real `oscap`, on this host and over a real ssh, put to work by SQL.

use crate::support::oscap_lab::{NOT_OTHER, OTHER, OscapLab, wait_until};
use crate::support::{QUICK_LEASE, SOON};
use serde_json::json;
use std::path::Path;

fn is_running(pid: &str) -> bool {
    // What has ended and was not waited for by its parent is still listed.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// One ticket of one device, and its daemon's jobs run by themselves.
fn ticket_of(scap: &mut OscapLab, payload: &str) -> String {
    scap.lab.continuously(&["RescanQueueJob", "ScanSyncJob"]);
    scap.lab.run("AssetSyncJob", r#"{"groups": ["lab"]}"#);
    scap.lab.run("TicketingJob", "{}");
    let queue = scap.lab.config("ACME", "RescanQueueJob");
    scap.lab.db.exec(&format!("update JobConfig set Payload = '{payload}' where ID = '{queue}'"));
    scap.lab.db.insert(&queue, payload);
    let sync = scap.lab.config("ACME", "ScanSyncJob");
    scap.lab.db.insert(&sync, "{}");
    scap.lab.db.text("select Title from Ticket")
}

#[test]
fn this_host_is_evaluated_and_what_oscap_found_becomes_detections() {
    let Some(mut scap) = OscapLab::here() else { return };
    scap.source(json!({}));
    let _daemon = scap.daemon(&[]);
    let would = scap.lab.run("OpenScapRunJob", r#"{"group": "lab", "dry_run": true}"#);
    assert_eq!(would["would_evaluate"], json!(["this host"]), "{would}");
    assert!(scap.files().is_empty());
    let ran = scap.lab.run("OpenScapRunJob", r#"{"group": "lab"}"#);
    assert_eq!(
        (&ran["evaluated"], &ran["changed"], &ran["failed"]),
        (&1.into(), &1.into(), &0.into()),
        "{ran}"
    );
    let files = scap.files();
    scap.lab.run("AssetSyncJob", r#"{"groups": ["lab"]}"#);
    let said =
        "select concat_ws(' ', d.AssetID, s.Status) from Detection t join Device d on d.ID = t.DeviceID
                join DetectionStatus s on s.ID = t.DetectionStatusID";
    let host = scap.lab.db.text("select AssetID from Device");
    assert_eq!(files, [format!("{host}.xml")]);
    assert_eq!(scap.lab.db.text(said), format!("{host} vulnerable"));

    // Another host cannot be evaluated here, and is not taken for this one.
    let problem = scap.lab.fails("OpenScapRunJob", r#"{"group": "lab", "hosts": ["web-01"]}"#);
    assert!(problem.contains(&format!("about \"{host}\", and was asked for about \"web-01\"")), "{problem}");
    let ran =
        scap.lab.run("OpenScapRunJob", &format!(r#"{{"group": "lab", "hosts": ["{host}", "web-01"]}}"#));
    assert_eq!(
        (&ran["evaluated"], &ran["failed"], &ran["partial"]),
        (&1.into(), &1.into(), &true.into()),
        "{ran}"
    );
    assert_eq!(scap.files(), files);

    scap.source(json!({"profile": "nobody"}));
    let problem = scap.lab.fails("OpenScapRunJob", r#"{"group": "lab"}"#);
    assert!(problem.contains("No profile matching suffix \"nobody\""), "{problem}");
}

#[test]
fn a_host_is_evaluated_over_ssh_and_only_a_whole_result_about_it_takes_the_place_of_the_last() {
    let Some(mut scap) = OscapLab::over_ssh() else { return };
    scap.source(json!({"parallel": 2}));
    let _daemon = scap.daemon(&[]);
    let ran = scap.lab.run("OpenScapRunJob", &format!(r#"{{"group": "lab", "hosts": ["{OTHER}"]}}"#));
    assert_eq!(ran["evaluated"], 1, "{ran}");
    let file = scap.lab.path(&format!("lab/{OTHER}.xml"));
    let first = std::fs::read_to_string(&file).unwrap();
    scap.lab.run("AssetSyncJob", r#"{"groups": ["lab"]}"#);
    assert_eq!(scap.lab.db.text("select AssetID from Device"), OTHER);

    // Without hosts: those that are known. Another name for it is another host, and one that is no host is none.
    scap.lab.db.exec(&format!("update Device set State = 'running' where AssetID = '{OTHER}'"));
    let ran = scap.lab.run("OpenScapRunJob", r#"{"group": "lab"}"#);
    assert_eq!((&ran["evaluated"], &ran["failed"]), (&1.into(), &0.into()), "{ran}");
    let hosts = json!({"group": "lab", "hosts": [OTHER, NOT_OTHER, "-oProxyCommand=touch /tmp/x", OTHER]});
    let ran = scap.lab.run("OpenScapRunJob", &hosts.to_string());
    assert_eq!((&ran["evaluated"], &ran["failed"]), (&1.into(), &2.into()), "{ran}");
    let problems = ran["problems"].to_string();
    assert!(problems.contains(&format!("{NOT_OTHER}: its result is about")), "{problems}");
    assert!(problems.contains("no name or address of a host"), "{problems}");

    std::fs::write(scap.aside("half"), "").unwrap();
    let before = std::fs::read_to_string(&file).unwrap();
    assert!(before.len() >= first.len() - 100);
    let problem = scap.lab.fails("OpenScapRunJob", r#"{"group": "lab"}"#);
    assert!(problem.contains("its result ends in the middle"), "{problem}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    assert_eq!(scap.files(), [format!("{OTHER}.xml")]);
}

#[test]
fn a_cancel_stops_oscap_here_and_on_the_other_host_and_leaves_nothing() {
    for scap in [OscapLab::here(), OscapLab::over_ssh()] {
        let Some(mut scap) = scap else { continue };
        scap.source(json!({}));
        scap.hold();
        let _daemon = scap.daemon(&[]);
        let hosts = if scap.port() == 22 { String::new() } else { format!(r#", "hosts": ["{OTHER}"]"#) };
        let id = scap.lab.start("ACME", "OpenScapRunJob", &format!(r#"{{"group": "lab"{hosts}}}"#));
        let oscap = scap.begun();
        assert!(is_running(&oscap));
        scap.lab.db.exec(&format!("update JobHistory set StatusID = -1 where ID = '{id}'"));
        scap.lab.db.wait_status(&id, 5);
        wait_until("oscap has ended", || !is_running(&oscap));
        assert!(scap.files().is_empty(), "{:?}", scap.files());
    }
}

#[test]
fn an_evaluation_that_takes_too_long_is_stopped_and_said_so() {
    let Some(mut scap) = OscapLab::here() else { return };
    scap.source(json!({"timeout_seconds": 1}));
    scap.hold();
    let _daemon = scap.daemon(&[]);
    let problem = scap.lab.fails("OpenScapRunJob", r#"{"group": "lab"}"#);
    assert!(problem.contains("took more than 1 s (`run.timeout_seconds`) and was stopped"), "{problem}");
    let oscap = scap.begun();
    wait_until("oscap has ended", || !is_running(&oscap));
    assert!(scap.files().is_empty(), "{:?}", scap.files());
}

#[test]
fn a_daemon_that_is_killed_meanwhile_costs_no_result_and_leaves_no_second_one() {
    let Some(mut scap) = OscapLab::over_ssh() else { return };
    scap.source(json!({}));
    scap.hold();
    let mut daemon = scap.daemon(&QUICK_LEASE);
    let id =
        scap.lab.start("ACME", "OpenScapRunJob", &format!(r#"{{"group": "lab", "hosts": ["{OTHER}"]}}"#));
    let first = scap.begun();
    daemon.kill();
    let _daemon = scap.daemon(&QUICK_LEASE);
    let second = scap.begun();
    assert_ne!(first, second);
    // ssh has heard that its daemon is gone, and told the other host.
    wait_until("the first one is stopped", || !is_running(&first));
    scap.release();
    scap.lab.db.wait_status(&id, 3);
    let shown: Vec<String> = scap.files().into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(shown, [format!("{OTHER}.xml")]);
    let synced = scap.lab.run("AssetSyncJob", r#"{"groups": ["lab"]}"#);
    assert_eq!((&synced["devices"], &synced["failed"]), (&1.into(), &0.into()), "{synced}");
}

#[test]
fn a_host_that_does_not_answer_is_written_down_and_decommissioned_if_that_was_asked() {
    let Some(mut scap) = OscapLab::over_ssh() else { return };
    scap.source(json!({}));
    let _daemon = scap.daemon(&[]);
    scap.lab.run("OpenScapRunJob", &format!(r#"{{"group": "lab", "hosts": ["{OTHER}"]}}"#));
    let ticket = ticket_of(&mut scap, r#"{"type": "DECOMMISSIONED"}"#);
    // Nobody listens there any more.
    scap.source(json!({"port": 1}));
    scap.lab
        .db
        .exec(&format!("update Ticket set Status = 'Resolved-Decommissioned' where Title = '{ticket}'"));
    let status = format!("select Status from Ticket where Title = '{ticket}'");
    scap.lab.db.wait_for(&status, "Closed-Decommission", SOON);
    let lines = std::fs::read_to_string(scap.lab.path("lab/unreachable.csv")).unwrap();
    assert!(lines.starts_with(&format!("{OTHER},")) && lines.contains("refused"), "{lines}");
    // Nor is it asked again each night.
    assert_eq!(scap.lab.run("OpenScapRunJob", r#"{"group": "lab"}"#)["examined"], 0);
}

#[test]
fn a_host_with_another_key_is_no_host_that_is_gone_and_its_tickets_do_not_wait_for_a_day() {
    let Some(mut scap) = OscapLab::over_ssh() else { return };
    scap.source(json!({}));
    let _daemon = scap.daemon(&[]);
    let hosts = format!(r#"{{"group": "lab", "hosts": ["{OTHER}"]}}"#);
    scap.lab.run("OpenScapRunJob", &hosts);
    let ticket = ticket_of(&mut scap, r#"{"type": "DECOMMISSIONED"}"#);
    // It was unreachable once, which says nothing of today.
    let line = format!("{OTHER},2099-01-01T00:00:00Z,timed out\n");
    scap.lab.write("lab/unreachable.csv", &line);
    scap.trust("other-host");
    scap.lab
        .db
        .exec(&format!("update Ticket set Status = 'Resolved-Decommissioned' where Title = '{ticket}'"));
    scap.lab.db.wait_for("select ScanStatus from ScanSummary", "error", SOON);
    assert_eq!(scap.lab.db.text("select FailedDate is not null from TicketRescan"), "t");
    assert_eq!(scap.lab.db.text("select Status from Ticket"), "Resolved-Decommissioned");
    let error = scap.lab.db.text("select h.Error from JobHistory h join ScanSummary s on s.RunJobID = h.ID");
    assert!(
        error.contains("its host key is not the one") && error.contains("does not count as unreachable"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(scap.lab.path("lab/unreachable.csv")).unwrap(), line);

    // Nor is one that does not let us in.
    scap.trust("host");
    std::fs::copy(scap.aside("other-host.pub"), scap.aside("identity.pub")).unwrap();
    let problem = scap.lab.fails("OpenScapRunJob", &hosts);
    assert!(problem.contains("ssh as root failed") && problem.contains("Permission denied"), "{problem}");
    assert_eq!(std::fs::read_to_string(scap.lab.path("lab/unreachable.csv")).unwrap(), line);
}

#[test]
fn nothing_runs_that_the_configuration_file_does_not_allow() {
    let Some(mut scap) = OscapLab::here() else { return };
    std::fs::copy(scap.aside("content/ds.xml"), scap.lab.path("ds.xml")).unwrap();
    std::fs::write(scap.aside("evil.xml"), "").unwrap();
    std::os::unix::fs::symlink(scap.aside("evil.xml"), scap.aside("content/link.xml")).unwrap();
    let payload = r#"{"group": "lab"}"#;
    {
        let daemon = scap.daemon(&[]);
        // Results are no content, although they lie in `sources.folders`.
        for content in
            [scap.lab.path("ds.xml"), scap.aside("content/link.xml"), scap.aside("content/../evil.xml")]
        {
            scap.source(json!({"content": content}));
            let problem = scap.lab.fails("OpenScapRunJob", payload);
            assert!(problem.contains("lies in none of the folders of `openscap.content`"), "{problem}");
        }
        for profile in ["--remediate", "a;touch /tmp/x", "$(id)"] {
            scap.source(json!({"profile": profile}));
            let problem = scap.lab.fails("OpenScapRunJob", payload);
            assert!(problem.contains("Payload field `run.profile`"), "{problem}");
        }
        scap.source(json!({"over": "ssh"}));
        let problem = scap.lab.fails("OpenScapRunJob", r#"{"group": "..", "hosts": ["web-01"]}"#);
        assert!(problem.contains("is no group"), "{problem}");
        drop(daemon);
    }
    scap.source(json!({}));
    {
        let _daemon = scap.daemon(&[("ROSTERD__OPENSCAP__CONTENT", "")]);
        let problem = scap.lab.fails("OpenScapRunJob", payload);
        assert!(problem.contains("list the folder of the content in `openscap.content`"), "{problem}");
    }
    {
        let _daemon =
            scap.daemon(&[("ROSTERD__OPENSCAP__OSCAP", ""), ("ROSTERD__OPENSCAP__SSH_IDENTITY_FILE", "")]);
        let problem = scap.lab.fails("OpenScapRunJob", payload);
        assert!(problem.contains("`openscap.oscap` of the configuration is empty"), "{problem}");
        scap.source(json!({"over": "ssh"}));
        let problem = scap.lab.fails("OpenScapRunJob", payload);
        assert!(problem.contains("`openscap.ssh_identity_file` of the configuration is empty"), "{problem}");
    }
    assert!(!scap.aside("started").exists() && !Path::new("/tmp/x").exists());
}

#[test]
fn the_loop_is_closed_by_oscap_itself() {
    let Some(mut scap) = OscapLab::over_ssh() else { return };
    scap.source(json!({}));
    let _daemon = scap.daemon(&[]);
    // The first result comes by a row of an operator; the rule fails.
    scap.lab.run("OpenScapRunJob", &format!(r#"{{"group": "lab", "hosts": ["{OTHER}"]}}"#));
    let ticket = ticket_of(&mut scap, r#"{"type": "NORMAL"}"#);
    let status = format!("select Status from Ticket where Title = '{ticket}'");
    assert_eq!(scap.lab.db.text(&status), "Open");

    // Somebody says that it is mended, and it is not. oscap tells the time in seconds.
    let later = "select clock_timestamp() > max(LastAssessed) + interval '1 second' from Device";
    let resolve = format!("update Ticket set Status = 'Resolved-Remediated' where Title = '{ticket}'");
    scap.lab.db.wait_for(later, "t", SOON);
    scap.lab.db.exec(&resolve);
    scap.lab.db.wait_for(&status, "Reopened", SOON);

    // Now it is.
    std::fs::write(scap.aside("looked-at"), "mended\n").unwrap();
    scap.lab.db.wait_for(later, "t", SOON);
    scap.lab.db.exec(&resolve);
    scap.lab.db.wait_for(&status, "Closed-Remediated", SOON);
    let ran = "select count(*) from JobHistory h join Job j on j.ID = h.JobID where j.Struct = 'OpenScapRunJob' and h.StatusID = 3";
    assert_eq!(scap.lab.db.text(ran), "3");
    assert_eq!(scap.lab.db.text("select count(*) from TicketRescan"), "0");
}

#[test]
fn a_rescan_that_nobody_would_run_says_what_to_insert_and_holds_no_ticket() {
    let Some(mut scap) = OscapLab::here() else { return };
    scap.source(json!({}));
    let _daemon = scap.daemon(&[]);
    scap.lab.run("OpenScapRunJob", r#"{"group": "lab"}"#);
    scap.lab.run("AssetSyncJob", r#"{"groups": ["lab"]}"#);
    scap.lab.run("TicketingJob", "{}");
    let run = scap.lab.config("ACME", "OpenScapRunJob");
    scap.lab.db.exec(&format!("update JobConfig set Active = false where ID = '{run}'"));
    let ticket = scap.lab.db.text("select Title from Ticket");
    let problem = scap.lab.fails("RescanJob", &format!(r#"{{"group": "lab", "tickets": ["{ticket}"]}}"#));
    assert!(
        problem.contains("no active JobConfig of OpenScapRunJob") && problem.contains("insert one"),
        "{problem}"
    );
    assert_eq!(scap.lab.db.text("select count(*) from TicketRescan"), "0");
}
