//! Faults of the way between a daemon and PostgreSQL.

use super::Fault;
use crate::proxy::Cut;
use crate::world::World;
use std::time::Duration;

/// Does it to one daemon behind a proxy, or to the one behind the link.
pub async fn inflict(world: &World, fault: Fault, mut rng: fastrand::Rng) {
    if fault == Fault::LinkDown {
        let Some(namespace) = &world.namespace else { return };
        let Some(daemon) = world.daemons.iter().find(|daemon| daemon.path.namespace.is_some()) else {
            return;
        };
        let Ok(_busy) = world.link_busy.try_lock() else { return };
        let record = world.recorder.begin(fault, Some(daemon.number));
        namespace.set_link(false);
        tokio::time::sleep(Duration::from_millis(rng.u64(1000..8000))).await;
        namespace.set_link(true);
        world.recorder.end(record);
        return;
    }
    let behind: Vec<_> =
        world.daemons.iter().filter_map(|daemon| Some((daemon, daemon.path.proxy.as_ref()?))).collect();
    if behind.is_empty() {
        return;
    }
    let (daemon, proxy) = behind[rng.usize(0..behind.len())];
    let record = world.recorder.begin(fault, Some(daemon.number));
    match fault {
        Fault::ProxyFreeze => {
            proxy.freeze(true);
            tokio::time::sleep(Duration::from_millis(rng.u64(500..7000))).await;
            proxy.freeze(false);
        }
        Fault::ProxyDelay => {
            proxy.delay(Duration::from_millis(rng.u64(20..300)));
            tokio::time::sleep(Duration::from_millis(rng.u64(1000..4000))).await;
            proxy.delay(Duration::ZERO);
        }
        Fault::ProxyHalfClose => proxy.cut(Cut::HalfClose),
        Fault::ProxyReset => proxy.cut(Cut::Reset),
        _ => {
            for _ in 0..5 {
                proxy.lose_next_answer();
                tokio::time::sleep(Duration::from_millis(rng.u64(20..250))).await;
            }
        }
    }
    world.recorder.end(record);
}
