//! UPDATE (RFC 4271 section 4.3) and what becomes of a malformed one (RFC 7606).
//!
//! ```text
//! +-------------------------------+-------------------------------+
//! | Withdrawn Routes Length (2)   | Withdrawn Routes ..
//! +-------------------------------+-------------------------------+
//! | Total Path Attribute Length   | Path Attributes ..            |
//! +-------------------------------+-------------------------------+
//! | Network Layer Reachability Information ..
//! +---------------------------------------------------------------+
//! ```

use nom::Parser;
use nom::multi::length_data;
use nom::number::complete::be_u16;

use super::attribute::{Approach, AttributeError, Attributes, Context, Fault, NextHop, kind};
use super::notification::{Notification, UPDATE};
use super::prefix::Nlri;
use crate::Family;

/// An UPDATE that ends the session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// The lengths do not fit the message.
    #[error("the lengths do not fit the message")]
    Lengths,
    /// Prefixes that cannot be told apart (RFC 7606 section 5.3).
    #[error("invalid network field")]
    Network,
    /// An attribute, by type, and all its octets.
    #[error("attribute {1}: {0}")]
    Attribute(AttributeError, u8, Vec<u8>),
}

impl UpdateError {
    /// The family whose prefixes cannot be told apart any more, if it is one that the attribute names (RFC 7606 section 2).
    pub fn family(&self) -> Option<Family> {
        let Self::Attribute(AttributeError::Optional, kind::MP_REACH_NLRI | kind::MP_UNREACH_NLRI, octets) = self
        else {
            return None;
        };
        let value =
            if octets.first()? & super::attribute::EXTENDED == 0 { octets.get(3..)? } else { octets.get(4..)? };
        let &[high, low, safi] = value.first_chunk()?;
        super::capability::family(u16::from_be_bytes([high, low]), safi)
    }

    /// What the neighbour is told.
    pub fn notification(self) -> Notification {
        match self {
            Self::Lengths => Notification::new(UPDATE, 1),
            Self::Network => Notification::new(UPDATE, 10),
            Self::Attribute(error, _, data) => {
                let (code, subcode) = error.notification();
                Notification { code, subcode, data }
            }
        }
    }
}

/// An UPDATE that does not end the session.
#[derive(Clone, Debug)]
pub struct Update<'a> {
    /// IPv4 prefixes that are gone.
    pub withdrawn: Nlri<'a>,
    /// The attributes of all the prefixes; `MP_REACH_NLRI` and `MP_UNREACH_NLRI` are among them.
    pub attributes: Attributes<'a>,
    /// IPv4 prefixes that the attributes are for.
    pub nlri: Nlri<'a>,
    /// What was wrong with attributes.
    pub faults: Vec<Fault<'a>>,
    /// Whether the prefixes are to be taken as withdrawn (RFC 7606 section 2).
    pub treat_as_withdraw: bool,
    /// Whether there was no attribute at all.
    pub bare: bool,
}

fn lengths(body: &[u8]) -> super::Parsed<'_, (&[u8], &[u8])> {
    (length_data(be_u16), length_data(be_u16)).parse(body)
}

impl<'a> Update<'a> {
    /// The body of a message.
    pub fn parse(body: &'a [u8], context: Context) -> Result<Self, UpdateError> {
        let (nlri, (withdrawn, field)) = lengths(body).map_err(|_| UpdateError::Lengths)?;
        let classic =
            |field| Nlri::parse_paths(Family::Ipv4, field, context.paths_ipv4).map_err(|_| UpdateError::Network);
        let (withdrawn, nlri) = (classic(withdrawn)?, classic(nlri)?);
        let (attributes, mut faults) = Attributes::parse(field, context);
        let carried = !nlri.is_empty() || attributes.mp_reach.is_some_and(|reach| !reach.nlri.is_empty());
        if carried {
            let mut missing = |kind| {
                let (error, approach) = (AttributeError::Missing, Approach::TreatAsWithdraw);
                // One that is there but malformed is not missing too.
                if !faults.iter().any(|fault: &Fault<'_>| fault.kind == kind) {
                    faults.push(Fault { error, approach, kind, octets: &[] });
                }
            };
            // RFC 7606 section 3 d.
            if attributes.origin.is_none() {
                missing(kind::ORIGIN);
            }
            if attributes.as_path.is_none() {
                missing(kind::AS_PATH);
            }
            if !nlri.is_empty() && attributes.next_hop.is_none() {
                missing(kind::NEXT_HOP);
            }
        }
        let worst = faults.iter().map(|fault| fault.approach).max();
        let treat_as_withdraw = worst == Some(Approach::TreatAsWithdraw);
        let fatal = match worst {
            Some(Approach::SessionReset) => Approach::SessionReset,
            // RFC 7606 section 5.2: without a prefix to withdraw nobody knows which ones were meant.
            Some(Approach::TreatAsWithdraw) if !carried && !attributes.foreign => Approach::TreatAsWithdraw,
            _ => {
                let bare = field.is_empty();
                return Ok(Self { withdrawn, attributes, nlri, faults, treat_as_withdraw, bare });
            }
        };
        let fault = faults.iter().find(|fault| fault.approach == fatal);
        Err(fault.map_or(UpdateError::Lengths, |fault| {
            UpdateError::Attribute(fault.error, fault.kind, fault.octets.to_vec())
        }))
    }

    /// The family whose End-of-RIB this is (RFC 4724 section 2), if it is one.
    pub fn end_of_rib(&self) -> Option<Family> {
        let Self { withdrawn, attributes, nlri, .. } = self;
        if !withdrawn.is_empty() || !nlri.is_empty() {
            return None;
        }
        match attributes.mp_unreach {
            Some(unreach) => {
                let alone =
                    Attributes { mp_unreach: Some(unreach), partial: attributes.partial, ..Attributes::default() };
                (unreach.nlri.is_empty() && *attributes == alone).then_some(unreach.family)
            }
            None => self.bare.then_some(Family::Ipv4),
        }
    }

    /// The next hop of the classic IPv4 prefixes.
    pub fn next_hop(&self) -> Option<NextHop> {
        Some(NextHop { address: self.attributes.next_hop?.into(), link_local: None })
    }
}
