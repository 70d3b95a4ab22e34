//! Addresses as Qualys lists them: `10.0.0.1,10.0.0.5-10.0.0.9`.

use std::net::{IpAddr, Ipv4Addr};

/// A list of addresses and ranges. Ranges are not expanded: a network of class A is one of them.
#[derive(Debug, Default)]
pub(super) struct Addresses(Vec<(Ipv4Addr, Ipv4Addr)>);

impl Addresses {
    /// Adds what `text` lists. What is no address is left out: hosts that Qualys tracks by name are listed by name.
    pub(super) fn add(&mut self, text: &str) {
        self.0.extend(text.split(',').filter_map(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        }));
    }

    /// Whether the address is among them.
    pub(super) fn holds(&self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        self.0.iter().any(|(first, last)| (first..=last).contains(&&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_single_addresses_are_found_and_names_do_no_harm() {
        let mut addresses = Addresses::default();
        addresses.add("10.0.0.1, 10.0.0.5-10.0.0.9,web-1.example.com,x-10.0.0.3,,10.0.1.9-10.0.1.1");
        let holds = |ip: &str| addresses.holds(ip.parse().unwrap());
        for ip in ["10.0.0.1", "10.0.0.5", "10.0.0.7", "10.0.0.9"] {
            assert!(holds(ip), "{ip}");
        }
        for ip in ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.10", "10.0.1.5", "::1"] {
            assert!(!holds(ip), "{ip}");
        }
    }
}
