//! What is less than the end of a session: routes of a neighbour that is away for long become a last resort (RFC 9494), and a
//! family whose messages cannot be read is given up while the others go on (RFC 7606 section 2, AFI/SAFI disable).
//!
//! When this happens is decided in `neighbor` and by the configuration; here is what it does to the routes.

use crate::intern::NeighborIndex;
use crate::learn::Known;
use crate::neighbor::Neighbor;
use crate::rib::{Change, Path, place};
use crate::wire::prefix::{Prefix4, Prefix6};
use crate::wire::update::UpdateError;
use crate::{Event, Family, Output, Speaker};

impl Speaker {
    /// All routes of a neighbour become a last resort; those that say so go.
    pub(crate) fn last_resort(&mut self, neighbor: &mut Neighbor, index: NeighborIndex, family: Family) {
        match family {
            Family::Ipv4 => self.last_resort_of::<Prefix4>(neighbor, index),
            Family::Ipv6 => self.last_resort_of::<Prefix6>(neighbor, index),
        }
    }

    fn last_resort_of<P: Known>(&mut self, neighbor: &mut Neighbor, index: NeighborIndex) {
        if neighbor.received[place(P::FAMILY)] == 0 {
            return;
        }
        let bound = u32::try_from(P::table(&self.rib).bound()).unwrap_or(u32::MAX);
        for destination in 0..bound {
            let table = P::table(&self.rib);
            if !table.live(destination) {
                continue;
            }
            let prefix = table.prefix(destination);
            let told: Vec<Path> = table.paths(destination).filter(|path| path.neighbor == index).collect();
            for path in told {
                let usable = |index: NeighborIndex| !self.unusable.get(usize::from(index)).copied().unwrap_or(false);
                let (table, interner) = P::tables(&mut self.rib);
                let change = match interner.as_last_resort(path.attributes) {
                    Some(marked) => table.set(prefix, (index, path.id), path.epoch, marked, interner, &usable),
                    None => table.remove(destination, (index, path.id), interner, &usable),
                };
                if change != Change::None {
                    self.count_change(neighbor, prefix, change);
                    self.spread::<P>(neighbor, index, destination);
                }
            }
        }
    }

    /// Gives up the family of a malformed message, if that is wanted and possible: its routes go, and what follows of it is
    /// not heard (RFC 4760 section 7). Ours are still told.
    pub(crate) fn disable(
        &mut self,
        neighbor: &mut Neighbor,
        index: NeighborIndex,
        slot: usize,
        error: &UpdateError,
        body: &[u8],
    ) -> bool {
        let (Some(family), UpdateError::Attribute(_, kind, raw)) = (error.family(), error) else { return false };
        if !neighbor.config.disable_family {
            return false;
        }
        let (kind, raw) = (*kind, raw.clone());
        let Some(negotiated) = &mut neighbor.connections[slot].negotiated else { return false };
        let another = negotiated.families.iter().any(|&one| one != family && negotiated.hears(one));
        // With IPv4 prefixes in the classic fields more than this family would be lost.
        let [high, low, rest @ ..] = body else { return false };
        let attributes = rest.first_chunk().map_or(0, |&length| usize::from(u16::from_be_bytes(length)));
        let alone = (*high, *low) == (0, 0) && rest.len() == attributes + 2;
        if !another || !alone {
            return false;
        }
        negotiated.disabled.insert(family);
        let name = neighbor.id.clone();
        let text = format!("{error}: {family:?} is not heard for the rest of this session");
        neighbor.last_error = Some(text.clone());
        self.outputs.push_back(Output::Event(Event::AttributeDiscard { neighbor: name, kind, raw, text }));
        neighbor.fresh(family);
        self.flush(neighbor, index, family, false);
        true
    }
}
