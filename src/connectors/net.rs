//! Which addresses calls may reach: public ones, and those `sources.allow_private` lists.
//!
//! A source is a row anybody with INSERT can write, so its address must not become a door into the network
//! the daemon stands in. The check is made on the address that is connected to, after the name was resolved,
//! so a name that changes its mind between check and connect gains nothing.

use ipnet::IpNet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// The rule for addresses, from `sources.allow_private`.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    allowed: Arc<[IpNet]>,
}

/// An address that may not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressRefused {
    /// Not public, and not listed.
    #[error("{address} is {kind}; to allow it, list it in `sources.allow_private`")]
    NotPublic {
        /// The address.
        address: IpAddr,
        /// What it is, with its article: "a private address".
        kind: &'static str,
    },
    /// Serves credentials to whoever asks from a cloud machine.
    #[error(
        "{address} is a cloud metadata address, which is never allowed, whatever `sources.allow_private` says"
    )]
    Metadata {
        /// The address.
        address: IpAddr,
    },
}

/// Addresses that hand out the machine's own credentials or settings, by cloud.
const METADATA: [IpAddr; 9] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), // AWS, Azure, Google, Oracle, DigitalOcean, OpenStack
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),   // AWS containers
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),  // AWS Kubernetes
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), // Alibaba
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),   // Azure host
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),     // Oracle, older
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), // AWS
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)), // AWS Kubernetes
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)), // Google
];

impl AddressPolicy {
    /// From the list of networks that are allowed although they are not public.
    pub fn new(allowed: impl Into<Arc<[IpNet]>>) -> Self {
        Self { allowed: allowed.into() }
    }

    /// Whether a connection to this address may be made.
    pub fn check(&self, address: IpAddr) -> Result<(), AddressRefused> {
        let inner = embedded(address);
        if METADATA.contains(&address) || inner.is_some_and(|v4| METADATA.contains(&IpAddr::V4(v4))) {
            return Err(AddressRefused::Metadata { address });
        }
        let listed = |ip: IpAddr| self.allowed.iter().any(|net| net.contains(&ip));
        let kind = match (address, inner) {
            (_, Some(v4)) if listed(IpAddr::V4(v4)) => None,
            (IpAddr::V4(v4), _) | (IpAddr::V6(_), Some(v4)) => v4_kind(v4),
            (IpAddr::V6(v6), None) => v6_kind(v6),
        };
        match kind {
            Some(kind) if !listed(address) => Err(AddressRefused::NotPublic { address, kind }),
            _ => Ok(()),
        }
    }

    /// The same for a host as a URL has it. A name passes here: it is checked once it was resolved.
    pub(crate) fn check_host(&self, host: &str) -> Result<(), AddressRefused> {
        let address: Option<IpAddr> = bare(host).parse().ok();
        address.map_or(Ok(()), |address| self.check(address))
    }

    /// The addresses of a host that may be connected to. A host of which none may is an error, whose inner
    /// error is an [`AddressRefused`].
    pub async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((bare(host), port)).await?.collect();
        let mut refused = None;
        let mut addresses = Vec::with_capacity(found.len());
        for address in found {
            match self.check(address.ip()) {
                Ok(()) => addresses.push(address),
                Err(reason) => refused = Some(reason),
            }
        }
        match (addresses.is_empty(), refused) {
            (true, Some(reason)) => Err(io::Error::new(io::ErrorKind::PermissionDenied, reason)),
            (true, None) => {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("host {host} has no address")))
            }
            _ => Ok(addresses),
        }
    }
}

/// A host without the brackets an IPv6 address wears in a URL.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

/// The IPv4 address a packet to this IPv6 address ends at, for the forms that carry one.
fn embedded(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = address else { return None };
    let segments = v6.segments();
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match segments {
        // Unspecified and loopback: addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // Compatible, mapped, translated (RFC 2765), NAT64, 6to4, and ISATAP, whatever its prefix.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => v4(high, low),
        _ => None,
    }
}

fn v4_kind(ip: Ipv4Addr) -> Option<&'static str> {
    match ip.octets() {
        [0, ..] => Some("an unspecified address"),
        [127, ..] => Some("a loopback address"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("a private address"),
        [169, 254, ..] => Some("a link-local address"),
        [100, 64..=127, ..] => Some("a carrier-grade NAT address"),
        [224..=239, ..] => Some("a multicast address"),
        [192, 0, 0, _] | [198, 18..=19, ..] | [192, 88, 99, _] | [240..=255, ..] => {
            Some("a reserved address")
        }
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("a documentation address"),
        _ => None,
    }
}

fn v6_kind(ip: Ipv6Addr) -> Option<&'static str> {
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified address"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        [0xfc00..=0xfdff, ..] => Some("a private address"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xfec0..=0xfeff, ..] => Some("a site-local address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        [0x64, 0xff9b, 1, ..] => Some("a private NAT64 address"),
        [0x2001, 0, ..] => Some("a Teredo address"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => Some("a documentation address"),
        [0x2001, 1..=0x01ff, ..] => Some("a reserved address"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("a reserved address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(networks: &[&str]) -> AddressPolicy {
        AddressPolicy::new(networks.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>())
    }

    fn refusal(policy: &AddressPolicy, address: &str) -> String {
        policy
            .check(address.parse().unwrap())
            .map_or_else(|e| e.to_string(), |()| format!("{address} allowed"))
    }

    const NOT_PUBLIC: &str = "0.0.0.0 0.1.2.3 127.0.0.1 127.255.255.254 10.0.0.1 10.255.255.255 172.16.0.1 \
        172.31.255.255 192.168.0.1 169.254.0.1 100.64.0.1 100.127.255.255 224.0.0.1 239.255.255.255 240.0.0.1 \
        255.255.255.255 192.0.0.1 192.0.2.1 198.18.0.1 198.51.100.7 203.0.113.9 192.88.99.1 :: ::1 fc00::1 \
        fd12:3456::1 fe80::1 febf::1 fec0::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:0:127.0.0.1 \
        ::127.0.0.1 ::192.168.1.1 64:ff9b::127.0.0.1 64:ff9b::10.1.2.3 64:ff9b:1::8.8.8.8 2002:7f00:1:: \
        2002:c0a8:101::1 2001:db8:1:1:0:5efe:10.0.0.1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 \
        2001:10::1 100::1 4000::1";

    #[test]
    fn addresses_that_are_not_public_are_refused_in_every_form_and_the_sentence_names_the_key() {
        for address in NOT_PUBLIC.split_whitespace() {
            let sentence = refusal(&policy(&[]), address);
            assert!(
                sentence.contains("`sources.allow_private`") && !sentence.ends_with("allowed"),
                "{sentence}"
            );
        }
    }

    #[test]
    fn public_addresses_are_allowed() {
        for address in
            ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
        {
            assert_eq!(policy(&[]).check(address.parse().unwrap()), Ok(()), "{address}");
        }
    }

    #[test]
    fn listed_networks_are_allowed_and_no_others() {
        let policy = policy(&["10.0.0.0/8", "::1/128"]);
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "::1"] {
            assert_eq!(policy.check(address.parse().unwrap()), Ok(()), "{address}");
        }
        for address in ["192.168.0.1", "127.0.0.1", "::ffff:127.0.0.1", "fe80::1"] {
            assert!(policy.check(address.parse().unwrap()).is_err(), "{address}");
        }
    }

    #[test]
    fn cloud_metadata_is_never_allowed_in_any_form() {
        let everything = policy(&["0.0.0.0/0", "::/0"]);
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "64:ff9b::169.254.169.254",
            "2002:a9fe:a9fe::",
            "::ffff:100.100.100.200",
        ] {
            let sentence = refusal(&everything, address);
            assert!(sentence.contains("never allowed"), "{sentence}");
        }
        assert_eq!(everything.check("127.0.0.1".parse().unwrap()), Ok(()));
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_loopback_is_refused() {
        let error = policy(&[]).resolve("localhost", 80).await.unwrap_err();
        assert!(error.to_string().contains("a loopback address"), "{error}");
    }
}
