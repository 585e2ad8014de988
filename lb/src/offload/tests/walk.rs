//! Chains as the kernel walks them.

use super::*;
use crate::hash::{jhash, scale};
use martlet_netlink::nft::SLOTS;

/// What the kernel does with a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// To the endpoint's table.
    Mark(u32),
    /// To the queue.
    Queue,
    /// To this neighbour, by the link of this index.
    Forward(IpAddr, u32),
    /// On to what comes next.
    On,
}

/// Runs the chain of a family over a packet whose transport header begins at `transport`.
pub fn walk(made: &Offload, family: Family, packet: &[u8], transport: usize, protocol: u8) -> End {
    let Offload { sets, chains, .. } = made;
    let end = Walk { sets, chains, family, packet, transport, protocol, mark: 0 }.chain(chain_of(family));
    assert_ne!(end, End::On, "a packet fell out of the chain");
    end
}

/// Runs the short way over a packet that came in by one of its links.
pub fn walk_in(made: &Table, family: Family, packet: &[u8], protocol: u8) -> End {
    let Table { sets, chains, .. } = made;
    let transport = if family == Family::Ipv4 { 20 } else { 40 };
    Walk { sets, chains, family, packet, transport, protocol, mark: 0 }.chain("ingress")
}

/// The sixteen registers.
struct Registers([u8; 64]);

impl Registers {
    fn at(&self, register: Register) -> &[u8] {
        &self.0[usize::from(register.0) * 4..]
    }

    fn number(&self, register: Register) -> u32 {
        u32::from_ne_bytes(self.at(register)[..4].try_into().unwrap())
    }

    fn address(&self, register: Register, family: Family) -> IpAddr {
        match family {
            Family::Ipv4 => <[u8; 4]>::try_from(&self.at(register)[..4]).unwrap().into(),
            Family::Ipv6 => <[u8; 16]>::try_from(&self.at(register)[..16]).unwrap().into(),
        }
    }

    /// Filled up with zeros.
    fn put(&mut self, register: Register, octets: &[u8]) {
        let at = usize::from(register.0) * 4;
        self.0[at..at + octets.len().next_multiple_of(4)].fill(0);
        self.0[at..at + octets.len()].copy_from_slice(octets);
    }
}

/// A packet on its way through chains.
struct Walk<'a> {
    sets: &'a BTreeMap<String, Set>,
    chains: &'a BTreeMap<String, Chain>,
    family: Family,
    packet: &'a [u8],
    transport: usize,
    protocol: u8,
    mark: u32,
}

impl Walk<'_> {
    fn chain(&mut self, chain: &str) -> End {
        let chains = self.chains;
        chains[chain].rules.iter().find_map(|rule| self.rule(rule)).unwrap_or(End::On)
    }

    /// Where the packet goes, if the rule says it.
    fn rule(&mut self, rule: &Rule) -> Option<End> {
        let mut registers = Registers([0; 64]);
        for expression in &rule.0 {
            match expression {
                Expression::Goto(next) => return Some(self.chain(next)),
                Expression::Choose { register, map } => {
                    let Set::Chains(names) = &self.sets[map] else { panic!("{map}") };
                    let number = usize::try_from(registers.number(*register)).unwrap();
                    return Some(self.chain(&names[number]));
                }
                Expression::SetMark { from } => self.mark = registers.number(*from),
                Expression::Forward { family, address, interface } => {
                    return Some(End::Forward(registers.address(*address, *family), registers.number(*interface)));
                }
                Expression::Accept if self.mark == 0 => return Some(End::On),
                Expression::Accept => return Some(End::Mark(self.mark)),
                Expression::Queue(_) => return Some(End::Queue),
                Expression::Counter => {}
                Expression::Lookup { register, set, found } => {
                    if self.has(set, &registers, *register) != *found {
                        return None;
                    }
                }
                Expression::Map { register, map, to } => {
                    let value = self.value(map, &registers, *register)?;
                    registers.put(*to, &value);
                }
                Expression::Compare { register, equal, value } => {
                    if registers.at(*register).starts_with(value) != *equal {
                        return None;
                    }
                }
                Expression::AtLeast { register, value } => {
                    if registers.at(*register)[..value.len()] < value[..] {
                        return None;
                    }
                }
                other => self.load(other, &mut registers)?,
            }
        }
        None
    }

    /// What only fills registers; `None`: the packet is too short.
    fn load(&self, expression: &Expression, registers: &mut Registers) -> Option<()> {
        match expression {
            Expression::Meta { key, to } => match key {
                MetaKey::Mark => registers.put(*to, &self.mark.to_ne_bytes()),
                MetaKey::Protocol => registers.put(*to, &[self.protocol]),
                MetaKey::PacketType => registers.put(*to, &[0]),
                MetaKey::Family | MetaKey::InputName => panic!("not used"),
            },
            Expression::Payload { base: Base::LinkLayer, offset: 12, length: 2, to } => {
                registers.put(*to, if self.family == Family::Ipv4 { &[8, 0] } else { &[0x86, 0xdd] });
            }
            Expression::Payload { base, offset, length, to } => {
                let transport = if *base == Base::Transport { self.transport } else { 0 };
                let start = usize::try_from(*offset).unwrap() + transport;
                registers.put(*to, self.packet.get(start..start + usize::try_from(*length).unwrap())?);
            }
            Expression::ShiftRight { from, to, bits } => {
                registers.put(*to, &(registers.number(*from) >> bits).to_ne_bytes());
            }
            Expression::Bitwise { from, to, mask, xor } => {
                let bits = registers.at(*from).iter().zip(mask).zip(xor);
                let octets: Vec<u8> = bits.map(|((octet, mask), xor)| octet & mask ^ xor).collect();
                registers.put(*to, &octets);
            }
            Expression::Hash { from, length, modulus, seed, to } => {
                let hash = jhash(&registers.at(*from)[..usize::try_from(*length).unwrap()], *seed);
                registers.put(*to, &scale(hash, *modulus).to_ne_bytes());
            }
            Expression::Immediate { to, value } => registers.put(*to, value),
            other => panic!("not used: {other:?}"),
        }
        Some(())
    }

    fn has(&self, set: &str, registers: &Registers, register: Register) -> bool {
        match &self.sets[set] {
            Set::Addresses { family, elements } => elements.contains(&registers.address(register, *family)),
            Set::Prefixes { family, elements } => {
                let address = registers.address(register, *family);
                elements.iter().any(|net| net.contains(&address))
            }
            Set::Counted(marks) => {
                assert!(marks.contains(&registers.number(register)), "{set} does not count what is forwarded");
                true
            }
            _ => panic!("{set}"),
        }
    }

    fn value(&self, map: &str, registers: &Registers, register: Register) -> Option<Vec<u8>> {
        match &self.sets[map] {
            Set::Map { key, elements, .. } => {
                elements.get(&registers.at(register)[..usize::try_from(*key).unwrap()]).cloned()
            }
            Set::Marks(marks) => {
                let first = usize::try_from(registers.number(register)).unwrap();
                assert!(first.is_multiple_of(SLOTS), "{first} is not the first of an element");
                let slots = marks.chunks(SLOTS).nth(first / SLOTS).unwrap();
                Some(slots.iter().flat_map(|mark| mark.to_ne_bytes()).collect())
            }
            Set::Ways { elements, .. } => elements
                .get(&registers.number(register))
                .map(|(address, link)| [octets(*address), link.to_ne_bytes().to_vec()].concat()),
            _ => panic!("{map}"),
        }
    }
}
