//! Where a sealed secret belongs.

use super::KeyId;
use uuid::Uuid;

/// Where a secret belongs; it opens there and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding<'a> {
    /// `SourceConfig.OrganizationID`.
    pub organization: Uuid,
    /// `SourceConfig.ID`.
    pub source: Uuid,
    /// The field of `AuthInfo`, such as `Password`.
    pub field: &'a str,
    /// The host of `SourceConfig.Address`, as [`host_of`](super::host_of) gives it.
    pub host: &'a str,
}

impl Binding<'_> {
    /// The associated data: key id, organization, source, field and host, each behind its length in bytes (64 bits,
    /// big endian), so that no two bindings have the same encoding.
    pub(super) fn encode(&self, key: KeyId) -> Vec<u8> {
        let parts: [&[u8]; 5] = [
            &key.bytes(),
            self.organization.as_bytes(),
            self.source.as_bytes(),
            self.field.as_bytes(),
            self.host.as_bytes(),
        ];
        let mut encoded = Vec::new();
        for part in parts {
            encoded.extend_from_slice(&(part.len() as u64).to_be_bytes());
            encoded.extend_from_slice(part);
        }
        encoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The parts of an encoding, read back by the rule that stands in its comment.
    fn decode(mut encoded: &[u8]) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        while !encoded.is_empty() {
            let (length, rest) = encoded.split_at(8);
            let length = u64::from_be_bytes(length.try_into().unwrap());
            let (part, rest) = rest.split_at(usize::try_from(length).unwrap());
            parts.push(part.to_vec());
            encoded = rest;
        }
        parts
    }

    proptest! {
        // Letters of few kinds, so that parts often look like the end of one and the beginning of the next.
        #[test]
        fn an_encoding_tells_every_part_of_a_binding(
            key in any::<[u8; 8]>(), organization in any::<u128>(), source in any::<u128>(),
            field in "[a|\u{0}\u{5}]{0,12}|\\PC{0,40}", host in "[a|\u{0}\u{5}]{0,12}|\\PC{0,40}",
        ) {
            let (organization, source) = (Uuid::from_u128(organization), Uuid::from_u128(source));
            let binding = Binding { organization, source, field: &field, host: &host };
            let parts = decode(&binding.encode(KeyId::from_bytes(key)));
            let wanted: [&[u8]; 5] =
                [&key, organization.as_bytes(), source.as_bytes(), field.as_bytes(), host.as_bytes()];
            prop_assert_eq!(parts, wanted);
        }

        #[test]
        fn letters_that_move_from_one_part_to_the_next_change_the_encoding(
            text in "[a-c.]{1,12}", one in 0_usize..=12, other in 0_usize..=12,
        ) {
            let encoding = |at: usize| {
                let (field, host) = text.split_at(at.min(text.len()));
                let id = Uuid::nil();
                Binding { organization: id, source: id, field, host }.encode(KeyId::from_bytes([0; 8]))
            };
            prop_assert_eq!(encoding(one) == encoding(other), one.min(text.len()) == other.min(text.len()));
        }
    }
}
