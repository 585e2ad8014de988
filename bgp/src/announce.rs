//! What a neighbour should hear, minus what it heard: Adj-RIB-Out of one family.
//!
//! Nothing is queued but numbers. A prefix waits in the list of the attributes that it will be announced with, so that all
//! that share them leave in one UPDATE; what a list says is checked again when it is sent, so a route that changed ten times
//! while the neighbour was slow is sent once. Memory is bounded by the number of prefixes, whatever the neighbours do.
//! Withdrawals leave first, then our own prefixes, then the rest.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::Counters;
use crate::intern::{AttributesId, OWN};
use crate::policy::{Exporter, beside};
use crate::rib::{Destination, Rib, Table, Tables, Usable};
use crate::wire::attribute::{EXTENDED, NextHop, OPTIONAL, kind};
use crate::wire::emit::{put_mp_reach_head, put_mp_unreach_head};
use crate::wire::prefix::Prefix;
use crate::wire::refresh::{Refresh, Subtype};
use crate::wire::{HEADER, Type, length16, put_message};

/// In no list.
const FREE: u32 = u32::MAX;
/// The last of its list.
const LAST: u32 = u32::MAX - 1;

/// The neighbour was told.
const ANNOUNCED: u8 = 1;
/// It waits among the withdrawals.
const WITHDRAWING: u8 = 2;
/// It waits there because its attributes leave no room for it.
const UNFIT: u8 = 4;

/// How many prefixes are looked at before other work gets its turn.
const DUMP: u32 = 32768;

/// What a neighbour heard and will hear of one family.
#[derive(Debug, Default)]
pub struct AdjRibOut {
    /// By destination: the next in its list.
    next: Vec<u32>,
    /// By destination.
    flags: Vec<u8>,
    /// By attributes: the first in the list.
    heads: Vec<u32>,
    /// Attributes whose list is not empty.
    order: VecDeque<AttributesId>,
    withdrawals: VecDeque<Destination>,
    /// All from this destination on have not been looked at.
    dump: Option<Destination>,
    /// Whether End-of-RIB was told.
    told_all: bool,
    refresh: Demarcation,
    announced: usize,
    message: Vec<u8>,
}

/// RFC 7313: where we are in telling all again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Demarcation {
    #[default]
    None,
    Begin,
    End,
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// Who is told, and how: what does not change while messages are filled.
#[derive(Clone, Copy)]
pub struct Audience<'a> {
    /// The policy.
    pub exporter: &'a Exporter<'a>,
    /// Which neighbours' paths may be used.
    pub usable: Usable<'a>,
    /// Octets of the largest message.
    pub maximum: usize,
    /// Whether End-of-RIB must wait (RFC 4724: we restarted and do not yet know our own prefixes).
    pub hold_end_of_rib: bool,
}

impl AdjRibOut {
    /// For a session that begins: all there is is to be told.
    pub fn new() -> Self {
        Self { dump: Some(0), ..Self::default() }
    }

    /// How many prefixes the neighbour has been told.
    pub const fn announced(&self) -> usize {
        self.announced
    }

    /// Whether something waits.
    pub fn waits(&self, hold_end_of_rib: bool) -> bool {
        self.dump.is_some()
            || !self.order.is_empty()
            || !self.withdrawals.is_empty()
            || self.refresh != Demarcation::None
            || !(self.told_all || hold_end_of_rib)
    }

    /// Everything is to be told again: the neighbour asked (RFC 2918), or the policy changed.
    pub fn again(&mut self, demarcate: bool) {
        self.dump = Some(0);
        if demarcate {
            self.refresh = Demarcation::Begin;
        }
    }

    /// Notes that the neighbour should hear of `destination` with `wanted`, or no more.
    pub fn mark<P: Prefix>(&mut self, table: &mut Table<P>, destination: Destination, wanted: Option<AttributesId>) {
        let index = at(destination);
        if index >= self.next.len() {
            if wanted.is_none() {
                return;
            }
            // As far as needed: who hears only of our own prefixes needs little, however many others tell.
            self.next.resize(index + 1, FREE);
            self.flags.resize(index + 1, 0);
        }
        let known = self.known(index);
        match wanted {
            Some(id) => {
                if self.next[index] == FREE {
                    self.push(destination, id);
                }
            }
            None => {
                if self.flags[index] & (ANNOUNCED | WITHDRAWING) == ANNOUNCED {
                    self.flags[index] |= WITHDRAWING;
                    self.withdrawals.push_back(destination);
                }
            }
        }
        if !known && self.known(index) {
            table.hold(destination);
        }
    }

    fn known(&self, index: usize) -> bool {
        self.flags[index] != 0 || self.next[index] != FREE
    }

    fn push(&mut self, destination: Destination, id: AttributesId) {
        if at(id) >= self.heads.len() {
            self.heads.resize(at(id) + 1, LAST);
        }
        let head = &mut self.heads[at(id)];
        if *head == LAST {
            // Our own prefixes are what a gateway waits for.
            if id == OWN { self.order.push_front(id) } else { self.order.push_back(id) }
        }
        self.next[at(destination)] = *head;
        *head = destination;
    }

    /// Forgets everything: the session is gone.
    pub fn clear<P: Prefix>(&mut self, table: &mut Table<P>) {
        for index in 0..self.next.len() {
            if self.known(index) {
                self.next[index] = FREE;
                self.flags[index] = 0;
                table.release(u32::try_from(index).unwrap_or(FREE));
            }
        }
        *self = Self::default();
    }

    /// Appends messages to `out` until `room` octets were appended or nothing waits. True while more waits.
    pub fn fill<P: Tables>(
        &mut self,
        rib: &mut Rib,
        audience: &Audience<'_>,
        out: &mut BytesMut,
        room: usize,
        counters: &mut Counters,
    ) -> bool {
        let start = out.len();
        let mut message = std::mem::take(&mut self.message);
        while out.len() - start < room {
            message.clear();
            if !self.withdrawals.is_empty() {
                self.withdraw::<P>(rib, audience, &mut message, counters);
            } else if self.refresh == Demarcation::Begin {
                self.refresh = Demarcation::End;
                Refresh { family: P::FAMILY, subtype: Subtype::Begin }.put(&mut message);
            } else if self.order.front().is_some_and(|&id| id == OWN || self.dump.is_none()) {
                self.announce::<P>(rib, audience, &mut message, counters);
            } else if self.dump.is_some() {
                self.look::<P>(rib, audience);
                if self.order.front() != Some(&OWN) && self.dump.is_some() {
                    break;
                }
            } else if self.refresh == Demarcation::End {
                self.refresh = Demarcation::None;
                Refresh { family: P::FAMILY, subtype: Subtype::End }.put(&mut message);
            } else if !self.told_all && !audience.hold_end_of_rib {
                self.told_all = true;
                end_of_rib::<P>(&mut message);
                counters.updates_out += 1;
            } else {
                break;
            }
            if !message.is_empty() {
                counters.messages_out += 1;
                out.extend_from_slice(&message);
            }
        }
        self.message = message;
        self.waits(audience.hold_end_of_rib)
    }

    /// Looks at some of the prefixes that were not looked at since the session began.
    fn look<P: Tables>(&mut self, rib: &mut Rib, audience: &Audience<'_>) {
        let Some(from) = self.dump else { return };
        let (table, interner) = P::tables(rib);
        let end = u32::try_from(table.bound()).unwrap_or(FREE);
        let to = from.saturating_add(DUMP).min(end);
        for destination in from..to {
            // One that has no path any more may still have to be withdrawn.
            let told = self.flags.get(at(destination)).is_some_and(|&flags| flags & ANNOUNCED != 0);
            if told || table.live(destination) {
                let best = table.best(destination, audience.usable);
                let wanted = audience.exporter.wanted(table.prefix(destination), best, interner);
                self.mark(table, destination, wanted);
            }
        }
        self.dump = (to < end).then_some(to);
    }

    fn wanted<P: Tables>(rib: &Rib, audience: &Audience<'_>, destination: Destination) -> Option<AttributesId> {
        let table = P::table(rib);
        let best = table.best(destination, audience.usable);
        audience.exporter.wanted(table.prefix(destination), best, &rib.interner)
    }

    fn withdraw<P: Tables>(
        &mut self,
        rib: &mut Rib,
        audience: &Audience<'_>,
        message: &mut Vec<u8>,
        counters: &mut Counters,
    ) {
        // Of the room for prefixes the fixed fields take at most 10 octets: lengths, and the head of MP_UNREACH_NLRI.
        let most = audience.maximum - HEADER - 14;
        let mut nlri = Vec::with_capacity(most.min(4096));
        while nlri.len() + 17 <= most
            && let Some(destination) = self.withdrawals.pop_front()
        {
            let index = at(destination);
            let unfit = self.flags[index] & UNFIT != 0;
            self.flags[index] &= !(WITHDRAWING | UNFIT);
            let gone = unfit || Self::wanted::<P>(rib, audience, destination).is_none();
            if gone && self.flags[index] & ANNOUNCED != 0 {
                self.flags[index] &= !ANNOUNCED;
                self.announced -= 1;
                counters.withdrawals_out += 1;
                P::table(rib).prefix(destination).put(&mut nlri);
            }
            if !self.known(index) {
                P::tables(rib).0.release(destination);
            }
        }
        if nlri.is_empty() {
            return;
        }
        counters.updates_out += 1;
        let own = audience.exporter.own_next_hop(P::FAMILY);
        let beside = own.is_some_and(|hop| beside(P::FAMILY, &hop)) || P::FAMILY == crate::Family::Ipv6;
        put_message(message, Type::Update, |message| {
            if beside {
                let mut head = Vec::with_capacity(3);
                put_mp_unreach_head(&mut head, P::FAMILY);
                put_two_fields(message, kind::MP_UNREACH_NLRI, &head, &nlri, &[]);
            } else {
                message.extend(length16(nlri.len()).to_be_bytes());
                message.extend_from_slice(&nlri);
                message.extend([0, 0]);
            }
        });
    }

    /// One message of the first list.
    fn announce<P: Tables>(
        &mut self,
        rib: &mut Rib,
        audience: &Audience<'_>,
        message: &mut Vec<u8>,
        counters: &mut Counters,
    ) {
        let Some(&id) = self.order.front() else { return };
        let mut block = Vec::new();
        let mut hop = None;
        let mut most = 0;
        let mut nlri = Vec::new();
        let mut moved = Vec::new();
        loop {
            let destination = self.heads[at(id)];
            if destination == LAST {
                self.order.pop_front();
                break;
            }
            let index = at(destination);
            let wanted = Self::wanted::<P>(rib, audience, destination);
            if wanted == Some(id) && hop.is_none() {
                hop = audience.exporter.attributes(id, P::FAMILY, &rib.interner, &mut block);
                // Lengths (4), and the head of MP_REACH_NLRI (4 + 5 + 32).
                most = audience.maximum.saturating_sub(HEADER + 4 + 41 + block.len());
            }
            let fits = most >= 17;
            if wanted == Some(id) && fits && nlri.len() + 17 > most {
                break;
            }
            self.heads[at(id)] = self.next[index];
            self.next[index] = FREE;
            match wanted {
                Some(same) if same == id && fits => {
                    if self.flags[index] & ANNOUNCED == 0 {
                        self.flags[index] |= ANNOUNCED;
                        self.announced += 1;
                    }
                    counters.prefixes_out += 1;
                    P::table(rib).prefix(destination).put(&mut nlri);
                }
                // Attributes that fill a message alone cannot be passed on (RFC 4271 section 9.2).
                Some(same) if same == id && self.flags[index] & (ANNOUNCED | WITHDRAWING) == ANNOUNCED => {
                    self.flags[index] |= WITHDRAWING | UNFIT;
                    self.withdrawals.push_back(destination);
                }
                Some(same) if same == id => (),
                Some(other) => moved.push((destination, other)),
                None => (),
            }
            if wanted.is_none_or(|wanted| wanted == id) && !self.known(index) {
                P::tables(rib).0.release(destination);
            }
        }
        for (destination, other) in moved {
            self.push(destination, other);
        }
        let Some(hop) = hop.filter(|_| !nlri.is_empty()) else { return };
        counters.updates_out += 1;
        put_message(message, Type::Update, |message| put_announcement::<P>(message, &hop, &block, &nlri));
    }
}

fn put_announcement<P: Prefix>(message: &mut Vec<u8>, hop: &NextHop, block: &[u8], nlri: &[u8]) {
    if beside(P::FAMILY, hop) {
        let mut head = Vec::with_capacity(37);
        put_mp_reach_head(&mut head, P::FAMILY, hop);
        put_two_fields(message, kind::MP_REACH_NLRI, &head, nlri, block);
    } else {
        message.extend([0, 0]);
        message.extend(length16(block.len()).to_be_bytes());
        message.extend_from_slice(block);
        message.extend_from_slice(nlri);
    }
}

/// No withdrawn routes, and attributes of which the first holds prefixes (RFC 7606 section 5.1).
fn put_two_fields(message: &mut Vec<u8>, kind: u8, head: &[u8], nlri: &[u8], rest: &[u8]) {
    let value = head.len() + nlri.len();
    message.extend([0, 0]);
    message.extend(length16(4 + value + rest.len()).to_be_bytes());
    message.extend([OPTIONAL | EXTENDED, kind]);
    message.extend(length16(value).to_be_bytes());
    message.extend_from_slice(head);
    message.extend_from_slice(nlri);
    message.extend_from_slice(rest);
}

fn end_of_rib<P: Prefix>(message: &mut Vec<u8>) {
    put_message(message, Type::Update, |message| match P::FAMILY {
        crate::Family::Ipv4 => message.extend([0; 4]),
        crate::Family::Ipv6 => {
            let mut head = Vec::with_capacity(3);
            put_mp_unreach_head(&mut head, P::FAMILY);
            message.extend([0, 0, 0, 6, OPTIONAL, kind::MP_UNREACH_NLRI, 3]);
            message.extend_from_slice(&head);
        }
    });
}
