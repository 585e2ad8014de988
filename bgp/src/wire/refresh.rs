//! ROUTE-REFRESH (RFC 2918) and its demarcation (RFC 7313).
//!
//! ```text
//! +-------------------------------+---------------+---------------+
//! |             AFI               | Subtype       |     SAFI      |
//! +-------------------------------+---------------+---------------+
//! ```

use bytes::BufMut;
use nom::Parser;
use nom::number::complete::{be_u8, be_u16};

use super::capability::{afi, family};
use super::{Type, put_message};
use crate::Family;

/// What a ROUTE-REFRESH says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subtype {
    /// Tell me all again.
    Request,
    /// Beginning of Route Refresh.
    Begin,
    /// End of Route Refresh.
    End,
}

/// A ROUTE-REFRESH for a family that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// The family.
    pub family: Family,
    /// What it says.
    pub subtype: Subtype,
}

impl Refresh {
    /// The body of a message, of which the framer knows that it has four octets; `None` is to be ignored (RFC 7313
    /// section 5): an unknown subtype or family.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let (_, (afi, subtype, safi)) = (be_u16::<_, ()>, be_u8, be_u8).parse(body).ok()?;
        let subtype = match subtype {
            0 => Subtype::Request,
            1 => Subtype::Begin,
            2 => Subtype::End,
            _ => return None,
        };
        Some(Self { family: family(afi, safi)?, subtype })
    }

    /// Appends the message.
    pub fn put(self, out: &mut Vec<u8>) {
        put_message(out, Type::RouteRefresh, |out| {
            out.put_u16(afi(self.family));
            out.put_u8(match self.subtype {
                Subtype::Request => 0,
                Subtype::Begin => 1,
                Subtype::End => 2,
            });
            out.put_u8(1);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::HEADER;

    #[test]
    fn what_is_emitted_parses_to_the_same() {
        for family in [Family::Ipv4, Family::Ipv6] {
            for subtype in [Subtype::Request, Subtype::Begin, Subtype::End] {
                let refresh = Refresh { family, subtype };
                let mut out = Vec::new();
                refresh.put(&mut out);
                assert_eq!(Refresh::parse(&out[HEADER..]), Some(refresh));
            }
        }
    }

    #[test]
    fn what_is_unknown_is_ignored() {
        assert_eq!(Refresh::parse(&[0, 1, 9, 1]), None);
        assert_eq!(Refresh::parse(&[0, 1, 0, 128]), None);
        assert_eq!(Refresh::parse(&[0, 1, 0]), None);
    }
}
