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
    /// The place of `SourceConfig.Address`, as [`place_of`](super::place_of) gives it.
    pub place: &'a str,
    /// Of a field that is sent to `TokenUrl`: its place, as [`token_place_of`](super::token_place_of) gives it. Empty
    /// for every other field, and where there is no `TokenUrl`.
    pub token_place: &'a str,
}

impl Binding<'_> {
    /// The associated data: key id, organization, source, field, place, and the place of `TokenUrl` where that is
    /// another one, each behind its length in bytes (64 bits, big endian). Two bindings have the same encoding only if
    /// they name the same places.
    pub(super) fn encode(&self, key: KeyId) -> Vec<u8> {
        let key = key.bytes();
        let mut parts: Vec<&[u8]> = vec![
            &key,
            self.organization.as_bytes(),
            self.source.as_bytes(),
            self.field.as_bytes(),
            self.place.as_bytes(),
        ];
        // Left out where it adds nothing, so that what was sealed for Address alone still opens there.
        if !self.token_place.is_empty() && self.token_place != self.place {
            parts.push(self.token_place.as_bytes());
        }
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
            field in "[a|\u{0}\u{5}]{0,12}|\\PC{0,40}", place in "[a|\u{0}\u{5}]{0,12}|\\PC{0,40}",
            token_place in "[a|\u{0}\u{5}]{0,12}|\\PC{0,40}",
        ) {
            let (organization, source) = (Uuid::from_u128(organization), Uuid::from_u128(source));
            let binding = Binding { organization, source, field: &field, place: &place, token_place: &token_place };
            let parts = decode(&binding.encode(KeyId::from_bytes(key)));
            let mut wanted: Vec<&[u8]> =
                vec![&key, organization.as_bytes(), source.as_bytes(), field.as_bytes(), place.as_bytes()];
            if !token_place.is_empty() && token_place != place {
                wanted.push(token_place.as_bytes());
            }
            prop_assert_eq!(parts, wanted);
        }

        #[test]
        fn letters_that_move_from_one_part_to_the_next_change_the_encoding(
            text in "[a-c.]{1,12}", one in 0_usize..=12, other in 0_usize..=12,
        ) {
            let encoding = |at: usize| {
                let (field, place) = text.split_at(at.min(text.len()));
                let id = Uuid::nil();
                Binding { organization: id, source: id, field, place, token_place: "" }
                    .encode(KeyId::from_bytes([0; 8]))
            };
            prop_assert_eq!(encoding(one) == encoding(other), one.min(text.len()) == other.min(text.len()));
        }
    }
}
