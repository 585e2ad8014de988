//! Tables -> messages of one batch: the whole table, or what changed. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, DevHookNumber, Hook as HookAttribute, HookNumber, InetHookNumber,
    ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetDescription, SetElementAttribute,
    SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage, Verdict,
    VerdictAttribute,
};

use super::{Chain, Hook, Layer, Place, Rule, SLOTS, Set, Table, expression};
use crate::Family;

/// A list of elements has a length of 16 bits.
const LIST_OCTETS_MAX: usize = 60_000;

/// The header of an attribute, octets.
const ATTRIBUTE: usize = 4;

/// The types that the `nft` program shows; the kernel does not look at them.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_INTEGER: u32 = 4;
const TYPE_ETHERNET: u32 = 9;
const TYPE_MARK: u32 = 19;
const TYPE_LINK: u32 = 20;
/// Bits of a type where a value is made of two.
const TYPE_BITS: u32 = 6;
/// This one the kernel knows.
const TYPE_VERDICT: u32 = 0xffff_ff00;
/// An attribute of the list of links of a chain.
const DEVICE_NAME: u16 = 1;

/// One message, and what it is for the reader of an error.
#[derive(Debug)]
pub(super) struct Part {
    /// "set vips-4 of table martlet-lb".
    pub what: String,
    /// The message.
    pub message: NfTablesMessage,
    /// Flags of its header.
    pub flags: u16,
}

/// A batch.
#[derive(Debug, Default)]
pub(super) struct Batch {
    table: String,
    pub layer: Layer,
    pub parts: Vec<Part>,
    /// Sets made in this batch: the kernel wants a number for each.
    sets: u32,
}

impl Batch {
    pub(super) fn new(table: &str, layer: Layer) -> Self {
        Self { table: table.to_owned(), layer, ..Self::default() }
    }

    /// What makes `table` true whatever is there.
    pub(super) fn whole(table: &Table) -> Self {
        let mut batch = Self::new(&table.name, table.layer);
        // A table that is not there cannot be deleted: make it, then delete it.
        batch.make_table();
        batch.delete_table();
        batch.make_table();
        // All chains before any rule: rules jump, and so do maps.
        for (name, chain) in &table.chains {
            batch.make_chain(name, chain);
        }
        for (name, set) in &table.sets {
            batch.make_set(name, set);
        }
        for (name, chain) in &table.chains {
            batch.add_rules(name, &chain.rules);
        }
        batch
    }

    /// What makes `table` true where `previous` is; `None`: they differ in more than elements and rules, or in chains
    /// and sets that came.
    pub(super) fn difference(table: &Table, previous: &Table) -> Option<Self> {
        let stays = |(name, set): (&String, &Set)| table.sets.get(name).is_some_and(|new| same_shape(set, new));
        let hooked =
            |(name, chain): (&String, &Chain)| table.chains.get(name).is_some_and(|new| new.hook == chain.hook);
        let comparable = (&table.name, table.layer) == (&previous.name, previous.layer)
            && previous.sets.iter().all(stays)
            && previous.chains.iter().all(hooked);
        if !comparable {
            return None;
        }
        let mut batch = Self::new(&table.name, table.layer);
        for (name, chain) in table.chains.iter().filter(|(name, _)| !previous.chains.contains_key(*name)) {
            batch.make_chain(name, chain);
        }
        for (name, set) in &table.sets {
            match previous.sets.get(name) {
                Some(old) => batch.change_elements(name, old, set),
                None => batch.make_set(name, set),
            }
        }
        for (name, chain) in &table.chains {
            let old = previous.chains.get(name).map_or(&[][..], |chain| &chain.rules);
            if old != chain.rules {
                if !old.is_empty() {
                    batch.flush_chain(name);
                }
                batch.add_rules(name, &chain.rules);
            }
        }
        Some(batch)
    }

    /// `of` is empty for the table itself, or ends with " of ".
    fn add(&mut self, of: &str, message: NfTablesMessage, flags: u16) {
        let what = format!("{of}table {}", self.table);
        self.parts.push(Part { what, message, flags });
    }

    pub(super) fn make_table(&mut self) {
        self.add("", NfTablesMessage::NewTable(self.table_message()), NLM_F_CREATE);
    }

    pub(super) fn delete_table(&mut self) {
        self.add("", NfTablesMessage::DeleteTable(self.table_message()), 0);
    }

    fn table_message(&self) -> TableMessage {
        TableMessage { attributes: vec![TableAttribute::Name(self.table.clone())] }
    }

    fn make_set(&mut self, name: &str, set: &Set) {
        self.sets += 1;
        let mut attributes = vec![
            SetAttribute::Table(self.table.clone()),
            SetAttribute::Name(name.to_owned()),
            SetAttribute::Id(self.sets),
        ];
        match set {
            Set::Prefixes { family, .. } => {
                attributes.push(SetAttribute::Flags(SetFlags::Interval));
                attributes.extend(address_key(*family));
            }
            Set::Addresses { family, elements } => {
                attributes.extend(address_key(*family));
                attributes.push(room(elements.len()));
            }
            Set::Marks(marks) => {
                attributes.push(SetAttribute::Flags(SetFlags::Map));
                attributes.extend([SetAttribute::KeyType(TYPE_INTEGER), SetAttribute::KeyLen(4)]);
                let octets = u32::try_from(SLOTS * 4).unwrap_or(u32::MAX);
                attributes.extend([SetAttribute::DataType(TYPE_INTEGER), SetAttribute::DataLen(octets)]);
                attributes.push(SetAttribute::UserData(host_order()));
                attributes.push(size(marks.len().div_ceil(SLOTS)));
            }
            Set::Chains(chains) => {
                attributes.push(SetAttribute::Flags(SetFlags::Map));
                attributes.extend([SetAttribute::KeyType(TYPE_INTEGER), SetAttribute::KeyLen(4)]);
                attributes.extend([SetAttribute::DataType(TYPE_VERDICT), SetAttribute::DataLen(0)]);
                attributes.push(SetAttribute::UserData(host_order()));
                attributes.push(size(chains.len()));
            }
            Set::Ways { family, elements } => {
                let (kind, length) = address_type(*family);
                attributes.push(SetAttribute::Flags(SetFlags::Map));
                attributes.extend([SetAttribute::KeyType(TYPE_MARK), SetAttribute::KeyLen(4)]);
                let kind = kind << TYPE_BITS | TYPE_LINK;
                attributes.extend([SetAttribute::DataType(kind), SetAttribute::DataLen(length + 4)]);
                attributes.push(SetAttribute::UserData(host_order()));
                attributes.push(room(elements.len()));
            }
            Set::Map { key, value, .. } => {
                attributes.push(SetAttribute::Flags(SetFlags::Map));
                attributes.extend([SetAttribute::KeyType(TYPE_INTEGER), SetAttribute::KeyLen(*key)]);
                attributes.extend([SetAttribute::DataType(TYPE_INTEGER), SetAttribute::DataLen(*value)]);
            }
            Set::Counted(marks) => {
                attributes.extend([SetAttribute::KeyType(TYPE_MARK), SetAttribute::KeyLen(4)]);
                attributes.push(SetAttribute::UserData(host_order()));
                attributes.push(room(marks.len()));
            }
            Set::Ethernet(elements) => {
                attributes.push(SetAttribute::Flags(SetFlags::Map));
                attributes.extend([SetAttribute::KeyType(TYPE_MARK), SetAttribute::KeyLen(4)]);
                attributes.extend([SetAttribute::DataType(TYPE_ETHERNET), SetAttribute::DataLen(6)]);
                attributes.push(SetAttribute::UserData(host_order()));
                attributes.push(room(elements.len()));
            }
        }
        self.add(&format!("set {name} of "), NfTablesMessage::NewSet(SetMessage { attributes }), NLM_F_CREATE);
        self.add_elements(name, all(set));
    }

    fn change_elements(&mut self, name: &str, old: &Set, new: &Set) {
        if old == new {
            return;
        }
        let (gone, come) = (surplus(old, new), surplus(new, old));
        for elements in chunks(gone) {
            let message = self.elements(name, elements);
            self.add(&format!("elements to delete of set {name} of "), NfTablesMessage::DeleteSetElement(message), 0);
        }
        self.add_elements(name, come);
    }

    fn add_elements(&mut self, name: &str, elements: Vec<Element>) {
        for elements in chunks(elements) {
            let message = self.elements(name, elements);
            self.add(&format!("elements of set {name} of "), NfTablesMessage::NewSetElement(message), NLM_F_CREATE);
        }
    }

    fn elements(&self, set: &str, elements: Vec<Element>) -> SetElementMessage {
        let list = elements.into_iter().map(ListAttribute::Element).collect();
        let names = [SetElementList::Table(self.table.clone()), SetElementList::Set(set.to_owned())];
        SetElementMessage { attributes: names.into_iter().chain([SetElementList::Elements(list)]).collect() }
    }

    pub(super) fn make_chain(&mut self, name: &str, chain: &Chain) {
        let mut attributes = vec![ChainAttribute::Table(self.table.clone()), ChainAttribute::Name(name.to_owned())];
        if let Some(Hook { place, priority }) = &chain.hook {
            // Two's complement, as C has it.
            let priority = HookAttribute::Priority(u32::from_ne_bytes(priority.to_ne_bytes()));
            let mut hook = vec![HookAttribute::Number(number_of(place)), priority];
            if let Place::Ingress(links) | Place::Egress(links) = place {
                let name = |link: &String| DefaultNla::new(DEVICE_NAME, [link.as_bytes(), &[0]].concat());
                hook.push(HookAttribute::NetDevices(links.iter().map(name).collect()));
            }
            attributes.extend([ChainAttribute::Hook(hook), ChainAttribute::Type("filter".to_owned())]);
        }
        self.add(&format!("chain {name} of "), NfTablesMessage::NewChain(ChainMessage { attributes }), NLM_F_CREATE);
    }

    fn flush_chain(&mut self, name: &str) {
        let attributes = vec![RuleAttribute::Table(self.table.clone()), RuleAttribute::Chain(name.to_owned())];
        self.add(&format!("rules of chain {name} of "), NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0);
    }

    pub(super) fn add_rules(&mut self, chain: &str, rules: &[Rule]) {
        for (rule, number) in rules.iter().zip(1..) {
            let attributes = vec![
                RuleAttribute::Table(self.table.clone()),
                RuleAttribute::Chain(chain.to_owned()),
                RuleAttribute::Expressions(expression::elements(&rule.0)),
            ];
            let what = format!("rule {number} of chain {chain} of ");
            self.add(&what, NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND);
        }
    }
}

/// Whether only the elements differ.
fn same_shape(old: &Set, new: &Set) -> bool {
    match (old, new) {
        (Set::Prefixes { family: old, .. }, Set::Prefixes { family: new, .. }) => old == new,
        (Set::Marks(old), Set::Marks(new)) => old.len() == new.len(),
        (Set::Map { key, value, .. }, Set::Map { key: new_key, value: new_value, .. }) => {
            (key, value) == (new_key, new_value)
        }
        (Set::Counted(old), Set::Counted(new)) => capacity(old.len()) == capacity(new.len()),
        (Set::Ethernet(old), Set::Ethernet(new)) => capacity(old.len()) == capacity(new.len()),
        (Set::Chains(old), Set::Chains(new)) => old == new,
        (Set::Ways { family, elements }, Set::Ways { family: new_family, elements: new }) => {
            family == new_family && capacity(elements.len()) == capacity(new.len())
        }
        (Set::Addresses { family, elements }, Set::Addresses { family: new_family, elements: new }) => {
            family == new_family && capacity(elements.len()) == capacity(new.len())
        }
        _ => false,
    }
}

/// Elements that a set has room for: one that says so is a table of fixed size, which is found in faster. It grows by a
/// factor of four, so that this is seldom.
const fn capacity(elements: usize) -> usize {
    let mut capacity = 256;
    while capacity < elements {
        capacity *= 4;
    }
    capacity
}

/// Twice of it, because what goes is still there while what comes is added.
fn room(elements: usize) -> SetAttribute {
    size(2 * capacity(elements))
}

fn size(elements: usize) -> SetAttribute {
    SetAttribute::Description(vec![SetDescription::Size(u32::try_from(elements).unwrap_or(u32::MAX))])
}

const fn address_type(family: Family) -> (u32, u32) {
    match family {
        Family::Ipv4 => (TYPE_IPV4, 4),
        Family::Ipv6 => (TYPE_IPV6, 16),
    }
}

const fn address_key(family: Family) -> [SetAttribute; 2] {
    let (kind, length) = address_type(family);
    [SetAttribute::KeyType(kind), SetAttribute::KeyLen(length)]
}

/// What the `nft` program reads to show slots and marks as numbers: "the key is in the machine's order".
fn host_order() -> Vec<u8> {
    [0, 4].into_iter().chain(1u32.to_ne_bytes()).collect()
}

fn number_of(place: &Place) -> HookNumber {
    match place {
        Place::Ingress(_) => DevHookNumber::Ingress.into(),
        Place::Egress(_) => DevHookNumber::Egress.into(),
        Place::Prerouting => InetHookNumber::PreRouting.into(),
        Place::Input => InetHookNumber::LocalIn.into(),
        Place::Forward => InetHookNumber::Forward.into(),
        Place::Output => InetHookNumber::LocalOut.into(),
        Place::Postrouting => InetHookNumber::PostRouting.into(),
    }
}

/// The attributes of an element.
type Element = Vec<SetElementAttribute>;

/// A range of addresses of one family, as numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Interval {
    first: u128,
    last: u128,
    /// Of an address.
    bits: u32,
}

fn all(set: &Set) -> Vec<Element> {
    match set {
        Set::Prefixes { .. } => intervals(set).iter().flat_map(Interval::elements).collect(),
        Set::Marks(marks) => elements_of(marks).map(|(first, marks)| slots(first, marks)).collect(),
        Set::Chains(chains) => (0..).zip(chains).map(|(number, chain)| goto(number, chain)).collect(),
        Set::Ways { elements, .. } => elements.iter().map(|(mark, to)| way(*mark, *to)).collect(),
        Set::Map { elements, .. } => elements.iter().map(|(key, value)| pair(key, value)).collect(),
        Set::Counted(marks) => marks.iter().copied().map(counted).collect(),
        Set::Ethernet(elements) => elements.iter().map(ethernet).collect(),
        Set::Addresses { family, elements } => {
            let of_family = elements.iter().filter(|address| address.is_ipv4() == (*family == Family::Ipv4));
            of_family.map(|one| address(*one)).collect()
        }
    }
}

/// The elements of a set without those of another of the same shape. It is found by keys: many a set has ten thousand, of which one
/// differs.
fn surplus(of: &Set, without: &Set) -> Vec<Element> {
    /// Keys with another value, or without one.
    fn other<'a, K: Ord, V: PartialEq>(
        of: &'a BTreeMap<K, V>,
        without: &'a BTreeMap<K, V>,
    ) -> impl Iterator<Item = (&'a K, &'a V)> {
        of.iter().filter(|(key, value)| without.get(key) != Some(value))
    }
    match (of, without) {
        (Set::Prefixes { .. }, _) => {
            intervals(of).difference(&intervals(without)).flat_map(Interval::elements).collect()
        }
        (Set::Marks(of), Set::Marks(without)) => {
            let changed = elements_of(of).zip(elements_of(without)).filter(|(of, without)| of != without);
            changed.map(|((first, marks), _)| slots(first, marks)).collect()
        }
        (Set::Ways { elements: of, .. }, Set::Ways { elements: without, .. }) => {
            other(of, without).map(|(mark, to)| way(*mark, *to)).collect()
        }
        (Set::Map { elements: of, .. }, Set::Map { elements: without, .. }) => {
            other(of, without).map(|(key, value)| pair(key, value)).collect()
        }
        (Set::Ethernet(of), Set::Ethernet(without)) => other(of, without).map(ethernet).collect(),
        (Set::Counted(of), Set::Counted(without)) => of.difference(without).copied().map(counted).collect(),
        (Set::Addresses { elements: of, .. }, Set::Addresses { elements: without, .. }) => {
            of.difference(without).copied().map(address).collect()
        }
        // Equal, if the shape is.
        _ => Vec::new(),
    }
}

fn chunks(elements: Vec<Element>) -> impl Iterator<Item = Vec<Element>> {
    let mut elements = elements.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut octets = 0;
        let chunk: Vec<_> = std::iter::from_fn(|| {
            elements.next_if(|element| {
                octets += ATTRIBUTE + element.as_slice().buffer_len();
                octets <= LIST_OCTETS_MAX
            })
        })
        .collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(address: IpAddr) -> Element {
    vec![SetElementAttribute::Key(DataAttribute::Value(octets(address)))]
}

fn ethernet((mark, address): (&u32, &[u8; 6])) -> Element {
    pair(&mark.to_ne_bytes(), address)
}

fn pair(key: &[u8], value: &[u8]) -> Element {
    vec![
        SetElementAttribute::Key(DataAttribute::Value(key.to_vec())),
        SetElementAttribute::Data(DataAttribute::Value(value.to_vec())),
    ]
}

/// An element with a counter of its own.
fn counted(mark: u32) -> Element {
    vec![SetElementAttribute::Key(DataAttribute::Value(mark.to_ne_bytes().to_vec())), expression::counter()]
}

/// The slots of each element of a [`Set::Marks`], and the first of them.
fn elements_of(marks: &[u32]) -> impl Iterator<Item = (u32, &[u32])> {
    (0..).step_by(SLOTS).zip(marks.chunks(SLOTS))
}

/// The result of a hash is a number in the machine's order, and so is a mark. The last element is filled up.
fn slots(first: u32, marks: &[u32]) -> Element {
    let mut octets: Vec<u8> = marks.iter().flat_map(|mark| mark.to_ne_bytes()).collect();
    octets.resize(SLOTS * 4, 0);
    pair(&first.to_ne_bytes(), &octets)
}

fn goto(number: u32, chain: &str) -> Element {
    let verdict = vec![VerdictAttribute::Code(Verdict::Goto), VerdictAttribute::Chain(chain.to_owned())];
    vec![
        SetElementAttribute::Key(DataAttribute::Value(number.to_ne_bytes().to_vec())),
        SetElementAttribute::Data(DataAttribute::Verdict(verdict)),
    ]
}

fn way(mark: u32, (address, link): (IpAddr, u32)) -> Element {
    let mut element = pair(&mark.to_ne_bytes(), &[octets(address), link.to_ne_bytes().to_vec()].concat());
    element.push(expression::counter());
    element
}

/// The prefixes as ranges that neither overlap nor touch: the kernel takes no others.
fn intervals(set: &Set) -> BTreeSet<Interval> {
    let Set::Prefixes { family, elements } = set else { return BTreeSet::new() };
    let bits = match family {
        Family::Ipv4 => 32,
        Family::Ipv6 => 128,
    };
    let of_family = elements.iter().filter(|prefix| Family::of(prefix) == *family);
    let ranges: BTreeSet<(u128, u128)> =
        of_family.map(|prefix| (number(prefix.network()), number(prefix.broadcast()))).collect();
    let mut intervals: Vec<Interval> = Vec::new();
    for (first, last) in ranges {
        match intervals.last_mut() {
            Some(before) if before.last.checked_add(1).is_none_or(|next| first <= next) => {
                before.last = last.max(before.last);
            }
            _ => intervals.push(Interval { first, last, bits }),
        }
    }
    intervals.into_iter().collect()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

impl Interval {
    /// Where it begins, and where what is not in it begins again: nowhere, if it reaches the last address.
    fn elements(&self) -> Vec<Element> {
        let mut elements = vec![vec![self.key(self.first)]];
        if self.last < u128::MAX >> (128 - self.bits) {
            elements.push(vec![self.key(self.last + 1), SetElementAttribute::Flags(SetElementFlags::IntervalEnd)]);
        }
        elements
    }

    fn key(&self, address: u128) -> SetElementAttribute {
        let octets = address.to_be_bytes();
        let octets = if self.bits == 32 { octets.iter().skip(12).copied().collect() } else { octets.to_vec() };
        SetElementAttribute::Key(DataAttribute::Value(octets))
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;
    use crate::nft::{Address, Queue, QueueForm};

    fn prefixes<const N: usize>(family: Family, texts: [&str; N]) -> Set {
        let elements: BTreeSet<IpNet> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Set::Prefixes { family, elements }
    }

    /// First and last address of each interval.
    fn spans(set: &Set) -> Vec<(u128, u128)> {
        intervals(set).into_iter().map(|interval| (interval.first, interval.last)).collect()
    }

    #[test]
    fn prefixes_that_overlap_or_touch_are_one_interval() {
        let set = prefixes(Family::Ipv4, ["20.0.0.0/24", "20.0.0.7/32", "20.0.1.0/24", "20.0.3.0/32", "20.0.0.0/25"]);
        assert_eq!(spans(&set), [(0x1400_0000, 0x1400_01ff), (0x1400_0300, 0x1400_0300)]);
        assert_eq!(spans(&prefixes(Family::Ipv6, ["::/0", "2000::1/128"])), [(0, u128::MAX)]);
        assert_eq!(spans(&prefixes(Family::Ipv6, ["20.0.0.1/32"])), []);
    }

    #[test]
    fn an_interval_that_reaches_the_last_address_has_no_end() {
        let ends = |set: &Set| all(set).len();
        assert_eq!(ends(&prefixes(Family::Ipv4, ["128.0.0.0/1"])), 1);
        assert_eq!(ends(&prefixes(Family::Ipv4, ["0.0.0.0/1"])), 2);
        assert_eq!(ends(&prefixes(Family::Ipv6, ["ffff::/16"])), 1);
    }

    fn table() -> Table {
        let queue = Queue { first: 0, total: 1, bypass: false, fanout: false, form: QueueForm::Native };
        let rule = Rule::new().address_in(Family::Ipv4, Address::Destination, "vips").queue(queue);
        Table::new("t")
            .set("vips", prefixes(Family::Ipv4, ["20.0.0.1/32", "20.0.0.5/32"]))
            .set("slots", Set::Marks([1, 2, 3].into()))
            .chain("c", Chain::at(Place::Prerouting, 0, vec![rule]))
    }

    fn names(batch: &Batch) -> Vec<&str> {
        batch.parts.iter().map(|part| part.what.as_str()).collect()
    }

    fn change(to: &Table) -> Option<Vec<String>> {
        Batch::difference(to, &table()).map(|batch| names(&batch).into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn an_equal_table_needs_nothing() {
        assert_eq!(change(&table()), Some(vec![]));
    }

    #[test]
    fn a_changed_set_is_its_changed_elements() {
        let more = table().set("vips", prefixes(Family::Ipv4, ["20.0.0.1/32", "20.0.0.9/32"]));
        let parts = ["elements to delete of set vips of table t", "elements of set vips of table t"];
        assert_eq!(change(&more), Some(parts.map(str::to_owned).to_vec()));
        let batch = Batch::difference(&more, &table()).unwrap();
        let count = |part: &Part| match &part.message {
            NfTablesMessage::NewSetElement(list) | NfTablesMessage::DeleteSetElement(list) => {
                let elements = list.attributes.iter().find_map(|attribute| match attribute {
                    SetElementList::Elements(elements) => Some(elements.len()),
                    _ => None,
                });
                elements.unwrap()
            }
            _ => 0,
        };
        assert_eq!(batch.parts.iter().map(count).collect::<Vec<_>>(), [2, 2], "begin and end of one interval each");
        let slots = table().set("slots", Set::Marks([1, 9, 3].into()));
        let batch = Batch::difference(&slots, &table()).unwrap();
        assert_eq!(batch.parts.iter().map(count).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn of_each_kind_of_set_only_what_differs_is_sent() {
        let four = |text: &str| text.parse::<IpAddr>().unwrap();
        let addresses = |last: &str| Set::Addresses {
            family: Family::Ipv4,
            elements: [four("20.0.0.1"), four("20.0.0.2"), four(last)].into(),
        };
        let ways = |link| Set::Ways {
            family: Family::Ipv4,
            elements: [(1, (four("10.0.0.1"), 2)), (2, (four("10.0.0.2"), 2)), (3, (four("10.0.0.3"), link))].into(),
        };
        let map =
            |value| Set::Map { key: 4, value: 4, elements: [(vec![1; 4], vec![0; 4]), (vec![2; 4], value)].into() };
        let ethernet = |last| Set::Ethernet([(1, [2, 0, 0, 0, 0, 1]), (2, [2, 0, 0, 0, 0, last])].into());
        for (old, new) in [
            (addresses("20.0.0.3"), addresses("20.0.0.4")),
            (ways(2), ways(3)),
            (map(vec![1; 4]), map(vec![2; 4])),
            (ethernet(2), ethernet(3)),
            (Set::Counted([1, 2].into()), Set::Counted([1, 3].into())),
            (Set::Marks(vec![1; 40].into()), Set::Marks([vec![1; 39], vec![2]].concat().into())),
        ] {
            assert!(same_shape(&old, &new), "{old:?}");
            assert_eq!((surplus(&old, &new).len(), surplus(&new, &old).len()), (1, 1), "{old:?}");
            assert_eq!(surplus(&old, &old.clone()), Vec::<Element>::new());
            assert!(all(&old).contains(&surplus(&old, &new)[0]) && all(&new).contains(&surplus(&new, &old)[0]));
        }
    }

    #[test]
    fn changed_rules_are_a_flushed_chain() {
        let mut other = table();
        other.chains.get_mut("c").unwrap().rules.push(Rule::new().counter());
        let parts = ["rules of chain c of table t", "rule 1 of chain c of table t", "rule 2 of chain c of table t"];
        assert_eq!(change(&other), Some(parts.map(str::to_owned).to_vec()));
    }

    #[test]
    fn a_changed_shape_is_a_new_table() {
        assert_eq!(change(&table().set("slots", Set::Marks([1, 2].into()))), None);
        assert_eq!(change(&table().chain("c", Chain::at(Place::Prerouting, 1, vec![]))), None);
        let mut fewer = table();
        fewer.sets.remove("slots");
        assert_eq!(change(&fewer), None);
    }

    #[test]
    fn many_elements_are_many_messages() {
        let batch = Batch::whole(&Table::new("t").set("slots", Set::Marks(vec![1; 65537].into())));
        let octets = 65537_usize.div_ceil(SLOTS) * (ATTRIBUTE * 5 + 4 + SLOTS * 4);
        assert_eq!(batch.parts.len(), 3 + 1 + octets.div_ceil(LIST_OCTETS_MAX));
        assert!(batch.parts.iter().all(|part| part.message.buffer_len() < 1 << 16));
    }
}
