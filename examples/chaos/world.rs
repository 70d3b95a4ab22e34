//! Everything a run consists of, and how it begins and ends.

use crate::api::Api;
use crate::clock::{self, MILLI};
use crate::daemons::{Daemon, LEASE};
use crate::lanes::Lanes;
use crate::nemesis::{Fault, process::HOG};
use crate::network::{Namespace, Path as NetworkPath};
use crate::operator::Operator;
use crate::postgres::Server;
use crate::proxy::Proxy;
use crate::recorder::{Intent, Recorder};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A run's inventory.
pub struct World {
    pub folder: PathBuf,
    pub server: Arc<Server>,
    pub daemons: Vec<Arc<Daemon>>,
    pub namespace: Option<Namespace>,
    pub recorder: Arc<Recorder>,
    pub api: Arc<Api>,
    pub lanes: Lanes,
    pub wall: clock::WallOffset,
    pub server_busy: tokio::sync::Mutex<()>,
    pub disk_busy: tokio::sync::Mutex<()>,
    pub clock_busy: tokio::sync::Mutex<()>,
    pub link_busy: tokio::sync::Mutex<()>,
    complaints: Mutex<Vec<String>>,
}

impl World {
    /// PostgreSQL, the API, proxies, a namespace, configurations; daemons are made and not started.
    pub async fn make(
        folder: &Path,
        daemons: usize,
        rng: &mut fastrand::Rng,
        more: Vec<(String, String)>,
    ) -> Arc<Self> {
        std::fs::create_dir_all(folder.join("effects")).expect("a folder");
        let server = Server::start(folder).await;
        let (namespace, ours) = match Namespace::make() {
            Some((namespace, ours)) => (Some(namespace), ours),
            None => (None, IpAddr::V4(Ipv4Addr::LOCALHOST)),
        };
        let (api, api_address) = Api::start(SocketAddr::new(ours, 0)).await;
        let recorder = Arc::<Recorder>::default();
        let mut operator = Operator::new(server.operator(), Arc::clone(&recorder));
        let lanes = Lanes::make(&mut operator, api_address, rng).await;
        let mut all = Vec::new();
        for number in 0..daemons {
            // The first two speak to the socket, the others through proxies, the last from its own namespace.
            let path = if number < 2 {
                NetworkPath { url: server.url(), ..NetworkPath::default() }
            } else {
                let last = number + 1 == daemons;
                let inside = namespace.as_ref().filter(|_| last);
                let at = if inside.is_some() { ours } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
                let proxy = Proxy::start(SocketAddr::new(at, 0), server.socket()).await;
                let url = Server::url_through(proxy.address);
                NetworkPath { url, proxy: Some(proxy), namespace: inside.map(|space| space.name.clone()) }
            };
            all.push(Arc::new(Daemon::new(number, path, folder, more.clone())));
        }
        Arc::new(Self {
            folder: folder.to_owned(),
            server,
            daemons: all,
            namespace,
            recorder,
            api,
            lanes,
            wall: clock::WallOffset::measure(),
            server_busy: tokio::sync::Mutex::default(),
            disk_busy: tokio::sync::Mutex::default(),
            clock_busy: tokio::sync::Mutex::default(),
            link_busy: tokio::sync::Mutex::default(),
            complaints: Mutex::default(),
        })
    }

    /// A connection of an operator.
    pub fn operator(&self) -> Operator {
        Operator::new(self.server.operator(), Arc::clone(&self.recorder))
    }

    /// Something a fault saw that must not be.
    pub fn complain(&self, sentence: String) {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(sentence);
    }

    /// All of it.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The wall clock is right again. What was dated by the wrong one would wait for an hour, so operators date it anew,
    /// as people do after such a day.
    pub async fn set_clock_right(&self, operator: &mut Operator) {
        operator.insist(Intent::Config, "update chaos.clock set step = '0'").await;
        self.date_anew(operator).await;
    }

    /// See [`Self::set_clock_right`].
    pub async fn date_anew(&self, operator: &mut Operator) {
        operator
            .insist(
                Intent::Config,
                "update JobHistory set NotBefore = now() where StatusID = 1 and NotBefore > now() + interval '5 minutes'",
            )
            .await;
    }

    /// Undoes what a fault may have been interrupted in.
    pub fn heal(&self) {
        if let Some(disk) = &self.server.small_disk {
            // There is none most of the time.
            let _ = std::fs::remove_file(disk.join("fill"));
        }
        for daemon in &self.daemons {
            daemon.signal("CONT");
        }
    }

    /// Waits until each daemon has its row in `Runner`.
    pub async fn wait_registered(&self) {
        let mut operator = self.operator();
        for _ in 0..600 {
            let pids: Vec<String> =
                self.daemons.iter().filter_map(|daemon| daemon.pid()).map(|pid| pid.to_string()).collect();
            let sql =
                format!("select count(distinct PID)::text from Runner where PID in ({})", pids.join(", "));
            let there = operator.ask(&sql).await;
            if there.is_some_and(|rows| rows[0][0] == self.daemons.len().to_string()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.complain("not every daemon was registered within 30 s".to_owned());
    }

    /// After the last fault: everything must come to its end within a lease and ten seconds. Returns how long it took.
    pub async fn drain(&self) -> Duration {
        for daemon in &self.daemons {
            if daemon.pid().is_none() {
                self.complain(format!("daemon {} had ended by itself", daemon.number));
                daemon.start();
            }
        }
        let mut operator = self.operator();
        self.set_clock_right(&mut operator).await;
        operator
            .insist(
                Intent::Config,
                &format!("update JobConfig set AutoStart = false where ID = '{}'", self.lanes.autostart),
            )
            .await;
        operator
            .insist(
                Intent::Config,
                &format!(
                    "update JobHistory set StatusID = -1 where ConfigID in ('{}', '{}') and StatusID in (1, 2)",
                    self.lanes.autostart, self.lanes.continuous
                ),
            )
            .await;
        // What queues behind a limit would take its time; what is asked is whether anything is stuck.
        let Lanes { single, limited, paced, narrow, .. } = self.lanes;
        operator
            .insist(
                Intent::Config,
                &format!(
                    "update JobHistory set StatusID = -1
                     where ConfigID in ('{single}', '{limited}', '{paced}', '{narrow}') and StatusID = 1"
                ),
            )
            .await;
        self.wait_registered().await;
        let limit = Duration::from_secs_f64(LEASE + 10.0);
        let began = tokio::time::Instant::now();
        // Back-offs of retries and of rescued rows are cut short: what is asked is whether anything is stuck.
        let hurry = "update JobHistory set NotBefore = now() where StatusID = 1 and NotBefore > now()";
        let live = "select count(*)::text from JobHistory where StatusID in (1, 2, -1)";
        let leaks = format!(
            "select concat_ws(', ',
               (select 'Runner ' || count(*) from Runner having count(*) <> {}),
               (select 'Claim ' || count(*) from Claim where Open <> 0 having count(*) > 0),
               (select 'CancelRequest ' || count(*) from CancelRequest having count(*) > 0),
               (select 'SourceShare ' || count(*) from SourceShare where Slots > 0 or Waiting > 0 having count(*) > 0))",
            self.daemons.len()
        );
        let mut drained = None;
        loop {
            operator.run(Intent::Config, Vec::new(), hurry.to_owned()).await;
            let left = operator.ask(live).await.map_or("?".to_owned(), |rows| rows[0][0].clone());
            if left == "0" && drained.is_none() {
                drained = Some(began.elapsed());
            }
            let leaked = operator.ask(&leaks).await.map_or("?".to_owned(), |rows| rows[0][0].clone());
            if left == "0" && leaked.is_empty() {
                return drained.unwrap_or_default();
            }
            if began.elapsed() > limit && drained.is_none() {
                let what = operator
                    .ask(
                        "select string_agg(concat_ws(' ', h.ID, h.StatusID, j.Struct, c.MaxInstances, h.Attempt, h.Crashes, h.ThreadID,
                           now() - h.StartedDate, h.Progress), '; '),
                           (select string_agg(concat_ws(' ', s.RunnerID, s.Slots, s.InFlight, now() - s.Seen), '; ') from SourceShare s),
                           (select string_agg(concat_ws(' ', r.ID, r.PID, r.Running, r.State), '; ') from Runner r),
                           (select count(*)::text from chaos.audit a where a.at > chaos.micros(now() - interval '5 seconds'))
                         from JobHistory h join JobConfig c on c.ID = h.ConfigID join Job j on j.ID = h.JobID
                         where h.StatusID in (1, 2, -1)",
                    )
                    .await;
                self.complain(format!("{left} rows are not final {limit:?} after the last fault: {what:?}"));
                return began.elapsed();
            }
            // Closed claims and slots in doubt are swept a little later.
            if began.elapsed() > limit + Duration::from_secs(15) {
                self.complain(format!("left behind after the last fault: {leaked}"));
                return drained.unwrap_or_default();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Watches this machine, and how much the daemons use, until the task is aborted.
    pub async fn watch(self: Arc<Self>) {
        let mut last = clock::now();
        let mut round = 0_u64;
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = clock::now();
            if now - last > 400 * MILLI {
                self.recorder.past(Fault::Stall, last);
            }
            last = now;
            round += 1;
            if round.is_multiple_of(50) {
                self.daemons.iter().for_each(|daemon| daemon.measure());
            }
        }
    }
}

/// Whether this process was started to be a hog.
pub fn hog_millis() -> Option<u64> {
    std::env::var(HOG).ok().and_then(|text| text.parse().ok())
}
