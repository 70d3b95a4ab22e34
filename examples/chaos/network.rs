//! How a daemon reaches PostgreSQL: straight, through a proxy, or through a proxy from a network namespace of its own.

use crate::proxy::Proxy;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;

/// A daemon's way to the database.
#[derive(Clone, Default)]
pub struct Path {
    /// `DATABASE_URL`.
    pub url: String,
    /// What stands between.
    pub proxy: Option<Arc<Proxy>>,
    /// The namespace it runs in.
    pub namespace: Option<String>,
}

/// A namespace with one link to us, which can be cut.
pub struct Namespace {
    /// Its name.
    pub name: String,
    link: String,
    /// Our end of the link.
    outside: String,
}

impl Namespace {
    /// Makes it, or says loudly why not.
    pub fn make() -> Option<(Self, IpAddr)> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("chaos: NOT ROOT: no network namespace, so the fault link-down is left out");
            return None;
        }
        let pid = std::process::id();
        let (name, outside, inside) =
            (format!("chaos{pid}"), format!("cho{}", pid % 1_000_000), format!("chi{}", pid % 1_000_000));
        let net = u8::try_from(pid % 250).unwrap_or(0) + 1;
        let ours = Ipv4Addr::new(10, 213, net, 1);
        let steps = [
            format!("netns add {name}"),
            format!("link add {outside} type veth peer name {inside}"),
            format!("link set {inside} netns {name}"),
            format!("addr add {ours}/24 dev {outside}"),
            format!("link set {outside} up"),
            format!("-n {name} addr add 10.213.{net}.2/24 dev {inside}"),
            format!("-n {name} link set {inside} up"),
            format!("-n {name} link set lo up"),
        ];
        let made = Self { name, link: inside, outside };
        for step in steps {
            if !ip(&step) {
                eprintln!("chaos: NO NETWORK NAMESPACE (ip {step}): the fault link-down is left out");
                return None;
            }
        }
        Some((made, IpAddr::V4(ours)))
    }

    /// Cuts or mends the link.
    pub fn set_link(&self, up: bool) {
        let word = if up { "up" } else { "down" };
        assert!(ip(&format!("-n {} link set {} {word}", self.name, self.link)), "the link is ours");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The namespace alone would go, and the link with it, only some time after its last process.
        ip(&format!("link del {}", self.outside));
        ip(&format!("netns del {}", self.name));
    }
}

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).status().is_ok_and(|status| status.success())
}
