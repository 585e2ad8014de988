//! Authentication of control packets (RFC 5880 sections 4.2 to 4.4 and 6.7): the section on the wire, signing, checking.
//!
//! The first key of a session signs, every key is accepted: a key is rolled over by adding the new one second at both ends,
//! making it first at both, then removing the old one. No packet is lost meanwhile.

use md5::Md5;
use nom::bytes::complete::take;
use nom::number::complete::{be_u8, be_u32};
use nom::{IResult, Parser};
use sha1::{Digest, Sha1};

use crate::{Auth, AuthKey, AuthKind, Discard};

/// Octets before the password: type, length, key id.
const PASSWORD_AT: usize = 3;
/// Octets before the digest: type, length, key id, reserved, sequence number.
const DIGEST_AT: usize = 8;

/// An authentication section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuthSection {
    /// Which kind.
    pub kind: AuthKind,
    /// Which key.
    pub key_id: u8,
    /// The sequence number; 0 where the kind has none.
    pub sequence: u32,
    /// The password (1 to 16 octets) or the digest (16 or 20 octets).
    pub proof: Vec<u8>,
}

impl AuthKind {
    /// Octets of the digest; `None` where a password travels instead.
    const fn digest_len(self) -> Option<usize> {
        match self {
            Self::SimplePassword => None,
            Self::KeyedMd5 | Self::MeticulousKeyedMd5 => Some(16),
            Self::KeyedSha1 | Self::MeticulousKeyedSha1 => Some(20),
        }
    }

    /// Whether every packet takes a new sequence number.
    const fn meticulous(self) -> bool {
        matches!(self, Self::MeticulousKeyedMd5 | Self::MeticulousKeyedSha1)
    }

    const fn to_wire(self) -> u8 {
        match self {
            Self::SimplePassword => 1,
            Self::KeyedMd5 => 2,
            Self::MeticulousKeyedMd5 => 3,
            Self::KeyedSha1 => 4,
            Self::MeticulousKeyedSha1 => 5,
        }
    }

    const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::SimplePassword),
            2 => Some(Self::KeyedMd5),
            3 => Some(Self::MeticulousKeyedMd5),
            4 => Some(Self::KeyedSha1),
            5 => Some(Self::MeticulousKeyedSha1),
            _ => None,
        }
    }

    /// The digest over `message`.
    fn digest(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::SimplePassword => Vec::new(),
            Self::KeyedMd5 | Self::MeticulousKeyedMd5 => Md5::digest(message).to_vec(),
            Self::KeyedSha1 | Self::MeticulousKeyedSha1 => Sha1::digest(message).to_vec(),
        }
    }
}

impl AuthSection {
    /// Reads the section: all that follows the mandatory section within Length.
    pub fn parse(octets: &[u8]) -> Result<Self, Discard> {
        let (after_length, (kind, length)) = kind_and_length(octets).map_err(|_| Discard::AuthLength)?;
        let kind = AuthKind::from_wire(kind).ok_or(Discard::AuthType)?;
        if usize::from(length) != octets.len() {
            return Err(Discard::AuthLength);
        }
        let Some(digest_len) = kind.digest_len() else {
            let (proof, key_id) = key_id(after_length).map_err(|_| Discard::AuthLength)?;
            if !(1..=16).contains(&proof.len()) {
                return Err(Discard::AuthLength);
            }
            return Ok(Self { kind, key_id, sequence: 0, proof: proof.to_vec() });
        };
        let (_, (key_id, sequence, proof)) = digest(after_length, digest_len).map_err(|_| Discard::AuthLength)?;
        if octets.len() != DIGEST_AT + digest_len {
            return Err(Discard::AuthLength);
        }
        Ok(Self { kind, key_id, sequence, proof: proof.to_vec() })
    }

    /// The octets of the section.
    pub fn emit(&self) -> Vec<u8> {
        let before = if self.kind.digest_len().is_some() { DIGEST_AT } else { PASSWORD_AT };
        let length = u8::try_from(before + self.proof.len()).unwrap_or(u8::MAX);
        let mut octets = vec![self.kind.to_wire(), length, self.key_id];
        if self.kind.digest_len().is_some() {
            octets.push(0);
            octets.extend(self.sequence.to_be_bytes());
        }
        octets.extend(&self.proof);
        octets
    }
}

fn kind_and_length(octets: &[u8]) -> IResult<&[u8], (u8, u8)> {
    (be_u8, be_u8).parse(octets)
}

fn key_id(octets: &[u8]) -> IResult<&[u8], u8> {
    be_u8.parse(octets)
}

/// Key id, sequence number and digest; the reserved octet is ignored on receipt.
fn digest(octets: &[u8], digest_len: usize) -> IResult<&[u8], (u8, u32, &[u8])> {
    let (rest, (key_id, _reserved, sequence, proof)) = (be_u8, be_u8, be_u32, take(digest_len)).parse(octets)?;
    Ok((rest, (key_id, sequence, proof)))
}

/// The key as it stands in the place of the digest while that is computed: zeros fill it.
fn padded(secret: &[u8], len: usize) -> Vec<u8> {
    let mut key: Vec<u8> = secret.iter().copied().take(len).collect();
    key.resize(len, 0);
    key
}

/// Signs the packets of one session and checks those of the other end.
#[derive(Clone, Debug)]
pub(crate) struct Authenticator {
    /// bfd.XmitAuthSeq.
    transmit: u32,
    /// bfd.RcvAuthSeq; `None` while bfd.AuthSeqKnown is 0.
    received: Option<u32>,
    /// What was signed last, without its section: a keyed sequence number moves when this does.
    last: Vec<u8>,
}

impl Authenticator {
    /// Starts with a random sequence number (section 6.8.1).
    pub const fn new(transmit: u32) -> Self {
        Self { transmit, received: None, last: Vec::new() }
    }

    /// No packet came for twice the Detection Time: bfd.AuthSeqKnown is 0 again (section 6.8.1).
    pub const fn forget(&mut self) {
        self.received = None;
    }

    /// The section that goes onto `bare`, a packet that was emitted without one.
    pub fn sign(&mut self, auth: &Auth, bare: &[u8]) -> Option<AuthSection> {
        let key = auth.keys.first()?;
        let Some(len) = auth.kind.digest_len() else {
            let proof = key.secret.iter().copied().take(16).collect();
            return Some(AuthSection { kind: auth.kind, key_id: key.id, sequence: 0, proof });
        };
        // Section 6.7.3: a meticulous number moves with every packet, a keyed one when the contents differ.
        if auth.kind.meticulous() || self.last != bare {
            self.transmit = self.transmit.wrapping_add(1);
        }
        bare.clone_into(&mut self.last);
        let proof = padded(&key.secret, len);
        let mut section = AuthSection { kind: auth.kind, key_id: key.id, sequence: self.transmit, proof };
        let mut message = with_section(bare, &section);
        message.truncate(bare.len() + DIGEST_AT + len);
        section.proof = auth.kind.digest(&message);
        Some(section)
    }

    /// Checks the section of a packet whose octets, as far as Length covers them, are `packet`.
    pub fn check(&mut self, auth: &Auth, section: &AuthSection, packet: &[u8], multiplier: u8) -> Result<(), Discard> {
        if section.kind != auth.kind {
            return Err(Discard::AuthType);
        }
        let keys: Vec<&AuthKey> = auth.keys.iter().filter(|key| key.id == section.key_id).collect();
        if keys.is_empty() {
            return Err(Discard::AuthKeyId);
        }
        let Some(len) = auth.kind.digest_len() else {
            let known = keys.iter().any(|key| same(&section.proof, key.secret.get(..16).unwrap_or(&key.secret)));
            return if known { Ok(()) } else { Err(Discard::AuthDigest) };
        };
        // Section 6.7.3: RcvAuthSeq (meticulous: plus one) to RcvAuthSeq + 3 * Detect Mult, on the circle of 32 bits.
        if let Some(received) = self.received {
            let ahead = section.sequence.wrapping_sub(received);
            let least = u32::from(auth.kind.meticulous());
            if !(least..=3 * u32::from(multiplier)).contains(&ahead) {
                return Err(Discard::AuthSequence);
            }
        }
        let before = packet.len().checked_sub(len).and_then(|at| packet.get(..at)).ok_or(Discard::AuthLength)?;
        let known = keys.iter().any(|key| {
            let message = [before, padded(&key.secret, len).as_slice()].concat();
            same(&auth.kind.digest(&message), &section.proof)
        });
        if !known {
            return Err(Discard::AuthDigest);
        }
        self.received = Some(section.sequence);
        Ok(())
    }
}

/// `bare` with the A bit, the Length and the octets of `section`.
pub(crate) fn with_section(bare: &[u8], section: &AuthSection) -> Vec<u8> {
    let octets = section.emit();
    let mut packet = bare.to_vec();
    if let [_, flags, _, length, ..] = packet.as_mut_slice() {
        *flags |= 0x04;
        *length = length.saturating_add(u8::try_from(octets.len()).unwrap_or(u8::MAX));
    }
    packet.extend(octets);
    packet
}

/// Compares secrets in a time that does not tell where they differ.
pub(crate) fn same(one: &[u8], two: &[u8]) -> bool {
    one.len() == two.len() && one.iter().zip(two).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [AuthKind; 5] = [
        AuthKind::SimplePassword,
        AuthKind::KeyedMd5,
        AuthKind::MeticulousKeyedMd5,
        AuthKind::KeyedSha1,
        AuthKind::MeticulousKeyedSha1,
    ];

    /// Any section that is well formed.
    pub fn sections() -> impl Strategy<Value = AuthSection> {
        (0..5usize, any::<u8>(), any::<u32>(), prop::collection::vec(any::<u8>(), 20), 1..=16usize).prop_map(
            |(kind, key_id, sequence, mut proof, password)| {
                let kind = KINDS[kind];
                proof.truncate(kind.digest_len().unwrap_or(password));
                let sequence = if kind == AuthKind::SimplePassword { 0 } else { sequence };
                AuthSection { kind, key_id, sequence, proof }
            },
        )
    }

    fn auth(kind: AuthKind, keys: &[(u8, &str)]) -> Auth {
        Auth { kind, keys: keys.iter().map(|&(id, secret)| AuthKey { id, secret: secret.into() }).collect() }
    }

    fn bare() -> Vec<u8> {
        let mut octets = vec![0x20, 0xc0, 3, 24];
        octets.resize(24, 7);
        octets
    }

    fn signed(signer: &mut Authenticator, auth: &Auth) -> (AuthSection, Vec<u8>) {
        let section = signer.sign(auth, &bare()).unwrap();
        let packet = with_section(&bare(), &section);
        (section, packet)
    }

    #[test]
    fn what_one_end_signs_the_other_accepts_with_every_kind() {
        for kind in KINDS {
            let auth = auth(kind, &[(3, "secret")]);
            let (section, packet) = signed(&mut Authenticator::new(41), &auth);
            assert_eq!(Authenticator::new(0).check(&auth, &section, &packet, 3), Ok(()), "{kind:?}");
        }
    }

    #[test]
    fn another_key_another_id_and_another_kind_are_refused() {
        for kind in KINDS {
            let (section, packet) = signed(&mut Authenticator::new(41), &auth(kind, &[(3, "secret")]));
            let check = |auth: &Auth| Authenticator::new(0).check(auth, &section, &packet, 3);
            assert_eq!(check(&auth(kind, &[(3, "Secret")])), Err(Discard::AuthDigest));
            assert_eq!(check(&auth(kind, &[(4, "secret")])), Err(Discard::AuthKeyId));
            let other = if kind == AuthKind::KeyedMd5 { AuthKind::KeyedSha1 } else { AuthKind::KeyedMd5 };
            assert_eq!(check(&auth(other, &[(3, "secret")])), Err(Discard::AuthType));
        }
    }

    #[test]
    fn a_changed_octet_breaks_the_digest() {
        let auth = auth(AuthKind::KeyedSha1, &[(1, "secret")]);
        let (section, mut packet) = signed(&mut Authenticator::new(9), &auth);
        packet[8] ^= 1;
        assert_eq!(Authenticator::new(0).check(&auth, &section, &packet, 3), Err(Discard::AuthDigest));
    }

    #[test]
    fn a_key_is_rolled_over_without_a_packet_lost() {
        let kind = AuthKind::MeticulousKeyedSha1;
        let steps =
            [auth(kind, &[(1, "old")]), auth(kind, &[(1, "old"), (2, "new")]), auth(kind, &[(2, "new"), (1, "old")])];
        let (mut signer, mut checker) = (Authenticator::new(5), Authenticator::new(0));
        for (ours, theirs) in [(0, 0), (1, 0), (1, 1), (2, 1), (1, 2), (2, 2)] {
            let (section, packet) = signed(&mut signer, &steps[ours]);
            assert_eq!(checker.check(&steps[theirs], &section, &packet, 3), Ok(()));
        }
    }

    #[test]
    fn a_replayed_packet_is_refused_by_the_meticulous_kinds_only() {
        for kind in
            [AuthKind::KeyedMd5, AuthKind::MeticulousKeyedMd5, AuthKind::KeyedSha1, AuthKind::MeticulousKeyedSha1]
        {
            let auth = auth(kind, &[(1, "secret")]);
            let (section, packet) = signed(&mut Authenticator::new(u32::MAX), &auth);
            let mut checker = Authenticator::new(0);
            assert_eq!(checker.check(&auth, &section, &packet, 3), Ok(()));
            let again = if kind.meticulous() { Err(Discard::AuthSequence) } else { Ok(()) };
            assert_eq!(checker.check(&auth, &section, &packet, 3), again);
        }
    }

    #[test]
    fn a_sequence_number_may_be_three_detection_times_ahead_and_no_more() {
        let auth = auth(AuthKind::MeticulousKeyedMd5, &[(1, "secret")]);
        let (mut signer, mut checker) = (Authenticator::new(u32::MAX - 3), Authenticator::new(0));
        let packets: Vec<_> = (0..=19).map(|_| signed(&mut signer, &auth)).collect();
        let mut check = |at: usize| checker.check(&auth, &packets[at].0, &packets[at].1, 3);
        assert_eq!(check(0), Ok(()));
        assert_eq!(check(10), Err(Discard::AuthSequence));
        assert_eq!(check(9), Ok(()));
        assert_eq!(check(8), Err(Discard::AuthSequence));
    }

    /// Packets that others signed with key 1, "secret": name, octets, kind, whether they are right.
    const SIGNED: [(&str, &str, AuthKind, bool); 7] = [
        (
            "simple-pw",
            "20c4032112345678abcdef12000186a000030d4000000000010901736563726574",
            AuthKind::SimplePassword,
            true,
        ),
        (
            "simple-pw-badlen",
            "20c4032112345678abcdef12000186a000030d4000000000010a01736563726574",
            AuthKind::SimplePassword,
            false,
        ),
        (
            "md5-seq1",
            "20c4033012345678abcdef12000186a000030d4000000000021801000000000170fe35ae1a4494c85eba3f9a87fa0db9",
            AuthKind::KeyedMd5,
            true,
        ),
        (
            "mmd5-seq1",
            "20c4033012345678abcdef12000186a000030d40000000000318010000000001d816cb3d69441fa4117d879cf3c8b7c9",
            AuthKind::MeticulousKeyedMd5,
            true,
        ),
        (
            "sha1-seq1",
            "20c4033412345678abcdef12000186a000030d4000000000041c010000000001c619bf663ec2c843857234636f249c710f806065",
            AuthKind::KeyedSha1,
            true,
        ),
        (
            "msha1-seq1",
            "20c4033412345678abcdef12000186a000030d4000000000051c01000000000130a9bf9aacf80ef352e418668fc8a411773523e3",
            AuthKind::MeticulousKeyedSha1,
            true,
        ),
        (
            "sha1-wrong-digest",
            "20c4033412345678abcdef12000186a000030d4000000000041c0100000000027fa20f3042532d502c02635a6fb7bb6f9efb4823",
            AuthKind::KeyedSha1,
            false,
        ),
    ];

    #[test]
    fn packets_that_others_signed_are_accepted() {
        for (name, hex, kind, right) in SIGNED {
            let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let octets: Vec<u8> = (0..hex.len()).step_by(2).map(digit).collect();
            let checked = crate::packet::Control::parse(&octets).and_then(|(packet, octets)| {
                let section = packet.auth.ok_or(Discard::AuthMissing)?;
                Authenticator::new(0).check(&auth(kind, &[(1, "secret")]), &section, octets, 3)
            });
            assert_eq!(checked.is_ok(), right, "{name}: {checked:?}");
        }
    }

    #[test]
    fn a_keyed_sequence_number_moves_only_with_the_contents() {
        let auth = auth(AuthKind::KeyedMd5, &[(1, "secret")]);
        let mut signer = Authenticator::new(5);
        let first = signer.sign(&auth, &bare()).unwrap().sequence;
        assert_eq!(signer.sign(&auth, &bare()).unwrap().sequence, first);
        let mut other = bare();
        other[0] ^= 1;
        assert_eq!(signer.sign(&auth, &other).unwrap().sequence, first + 1);
    }
}
