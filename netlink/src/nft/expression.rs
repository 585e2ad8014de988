//! Expressions -> attributes of the kernel (`linux/netfilter/nf_tables.h`). Pure.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    MetaKey as KernelKey, Operator, Payload, Register as KernelRegister, SetElementAttribute, Verdict,
    VerdictAttribute,
};

use super::rule::{Base, Checksum, Expression, MetaKey, Queue, QueueForm, Register, protocol_family};

/// One element of the list of expressions of a rule.
type Element = ListAttribute<ExpressionAttribute>;

const VERDICT_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;
/// "Not in the set".
const LOOKUP_INVERTED: u32 = 1;
/// The same numbers in the native expression and in the target.
const QUEUE_BYPASS: u16 = 1;
const QUEUE_FANOUT: u16 = 2;
/// The revision of the `NFQUEUE` target that knows number, total and flags.
const TARGET_REVISION: u32 = 3;

/// Where an SCTP packet has its checksum: the kernel wants to be told.
const SCTP_CHECKSUM: u32 = 8;
/// An operation of `bitwise`.
const SHIFT_RIGHT: u32 = 2;
/// The attribute holds attributes.
const NESTED: u16 = 0x8000;

/// Where a transparent proxy finds its port.
const PORT: Register = Register(0);

/// The attributes of the expressions of a rule.
pub(super) fn elements(expressions: &[Expression]) -> Vec<Element> {
    let mut elements = Vec::with_capacity(expressions.len());
    for expression in expressions {
        if let Expression::Tproxy { port, .. } = expression {
            // The kernel wants it in a register.
            elements.push(immediate(register(PORT), DataAttribute::Value(port.to_be_bytes().to_vec())));
        }
        elements.push(element(expression));
    }
    elements
}

/// The attributes of `expression`.
fn element(expression: &Expression) -> Element {
    match expression {
        Expression::Meta { key, to } => {
            Expressions::Meta(vec![Meta::Key(meta_key(*key)), Meta::DestinationRegister(register(*to))]).into()
        }
        Expression::SetMark { from } => {
            Expressions::Meta(vec![Meta::Key(KernelKey::Mark), Meta::SourceRegister(register(*from))]).into()
        }
        Expression::Payload { base, offset, length, to } => Expressions::Payload(vec![
            Payload::DestinationRegister(register(*to)),
            Payload::Base(self::base(*base)),
            Payload::Offset(*offset),
            Payload::Len(*length),
        ])
        .into(),
        Expression::Write { from, base, offset, length, checksum } => {
            let (kind, at) = match checksum {
                Checksum::None => (0_u32, 0),
                Checksum::Internet(at) => (1, *at),
                Checksum::Sctp => (2, SCTP_CHECKSUM),
            };
            let mut attributes = vec![
                number(2, self::base(*base)),
                number(3, *offset),
                number(4, *length),
                number(5, register(*from)),
                number(6, kind),
            ];
            if kind != 0 {
                attributes.push(number(7, at));
            }
            other("payload", attributes)
        }
        Expression::ShiftRight { from, to, bits } => {
            // One attribute in another: its value, in the machine's order.
            let value = [&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), &bits.to_ne_bytes()].concat();
            let shift = DefaultNla::new(7 | NESTED, value);
            let (from, to) = (number(1, register(*from)), number(2, register(*to)));
            other("bitwise", vec![from, to, number(3, 4_u32), number(6, SHIFT_RIGHT), shift])
        }
        Expression::Compare { register, equal, value } => {
            compare(*register, if *equal { Operator::Equal } else { Operator::NotEqual }, value)
        }
        Expression::AtLeast { register, value } => compare(*register, Operator::GreatherThanEqual, value),
        Expression::Bitwise { from, to, mask, xor } => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(register(*from)),
            Bitwise::DestinationRegister(register(*to)),
            Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(DataAttribute::Value(mask.clone())),
            Bitwise::Xor(DataAttribute::Value(xor.clone())),
        ])
        .into(),
        Expression::Immediate { to, value } => immediate(register(*to), DataAttribute::Value(value.clone())),
        Expression::Lookup { register: from, set, found } => {
            let mut attributes = vec![Lookup::Set(set.clone()), Lookup::SourceRegister(register(*from))];
            if !found {
                attributes.push(Lookup::Flags(LOOKUP_INVERTED));
            }
            Expressions::Lookup(attributes).into()
        }
        Expression::Map { register: from, map, to } => value_of(map, *from, register(*to)),
        Expression::Choose { register, map } => value_of(map, *register, KernelRegister::Verdict),
        Expression::Forward { family, address, interface } => other(
            "fwd",
            vec![number(1, register(*interface)), number(2, register(*address)), number(3, protocol_family(*family))],
        ),
        Expression::Hash { from, length, modulus, seed, to } => other(
            "hash",
            vec![
                number(1, register(*from)),
                number(2, register(*to)),
                number(3, *length),
                number(4, *modulus),
                number(5, *seed),
            ],
        ),
        Expression::Counter => other("counter", vec![]),
        Expression::Queue(queue) => self::queue(*queue),
        Expression::Accept => verdict(vec![VerdictAttribute::Code(Verdict::Other(VERDICT_ACCEPT))]),
        Expression::Drop => verdict(vec![VerdictAttribute::Code(Verdict::Other(VERDICT_DROP))]),
        Expression::Return => verdict(vec![VerdictAttribute::Code(Verdict::Return)]),
        Expression::Jump(chain) => {
            verdict(vec![VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain(chain.clone())])
        }
        Expression::Goto(chain) => {
            verdict(vec![VerdictAttribute::Code(Verdict::Goto), VerdictAttribute::Chain(chain.clone())])
        }
        Expression::Tproxy { family, .. } => {
            other("tproxy", vec![number(1, protocol_family(*family)), number(3, register(PORT))])
        }
    }
}

fn compare(from: Register, operator: Operator, value: &[u8]) -> Element {
    let value = Cmp::Data(DataAttribute::Value(value.to_vec()));
    Expressions::Cmp(vec![Cmp::SourceRegister(register(from)), Cmp::Op(operator), value]).into()
}

/// What a map has for a key.
fn value_of(map: &str, key: Register, to: KernelRegister) -> Element {
    let (key, to) = (Lookup::SourceRegister(register(key)), Lookup::DestinationRegister(to));
    Expressions::Lookup(vec![Lookup::Set(map.to_owned()), key, to]).into()
}

fn register(register: Register) -> KernelRegister {
    // The sixteen registers of 4 octets begin at 8.
    KernelRegister::from(8 + u32::from(register.0))
}

const fn meta_key(key: MetaKey) -> KernelKey {
    match key {
        MetaKey::Mark => KernelKey::Mark,
        MetaKey::Family => KernelKey::Nfproto,
        MetaKey::Protocol => KernelKey::L4Proto,
        MetaKey::InputName => KernelKey::Iifname,
        MetaKey::PacketType => KernelKey::PacketType,
    }
}

const fn base(base: Base) -> u32 {
    match base {
        Base::LinkLayer => 0,
        Base::Network => 1,
        Base::Transport => 2,
    }
}

fn queue(queue: Queue) -> Element {
    let Queue { first, total, bypass, fanout, form } = queue;
    let flags = if bypass { QUEUE_BYPASS } else { 0 } | if fanout { QUEUE_FANOUT } else { 0 };
    match form {
        QueueForm::Native => other("queue", vec![short(1, first), short(2, total), short(3, flags)]),
        QueueForm::Xtables => {
            // struct xt_NFQ_info_v3: queuenum, queues_total, flags; filled up to 8 octets, in the machine's order.
            let info = [first, total, flags, 0].into_iter().flat_map(u16::to_ne_bytes).collect();
            other(
                "target",
                vec![DefaultNla::new(1, b"NFQUEUE\0".to_vec()), number(2, TARGET_REVISION), DefaultNla::new(3, info)],
            )
        }
    }
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Element {
    Expressions::Other { expression_type: name.to_owned(), attributes }.into()
}

fn immediate(to: KernelRegister, data: DataAttribute) -> Element {
    Expressions::Immediate(vec![Immediate::DestinationRegister(to), Immediate::Data(data)]).into()
}

fn verdict(verdict: Vec<VerdictAttribute>) -> Element {
    immediate(KernelRegister::Verdict, DataAttribute::Verdict(verdict))
}

/// What an element of a set has besides its key.
pub(super) fn counter() -> SetElementAttribute {
    SetElementAttribute::Expression(ExpressionAttribute::Name("counter".to_owned()))
}

fn number(kind: u16, value: impl Into<u32>) -> DefaultNla {
    DefaultNla::new(kind, value.into().to_be_bytes().to_vec())
}

fn short(kind: u16, value: u16) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    /// The expression as it stands in a message.
    fn octets(expression: &Expression) -> Vec<u8> {
        let elements = [element(expression)];
        let mut octets = vec![0; elements.as_slice().buffer_len()];
        elements.as_slice().emit(&mut octets);
        octets
    }

    fn to_queue(form: QueueForm) -> Expression {
        Expression::Queue(Queue { first: 2, total: 4, bypass: true, fanout: true, form })
    }

    /// What `nft --debug=mnl add rule inet t c queue flags bypass,fanout to 2-5` sends on a kernel that has it.
    #[test]
    fn the_native_queue_expression_is_these_octets() {
        #[rustfmt::skip]
        let golden = [
            44, 0, 1, 0x80,
                10, 0, 1, 0, b'q', b'u', b'e', b'u', b'e', 0, 0, 0,
                28, 0, 2, 0x80,
                    6, 0, 1, 0, 0, 2, 0, 0,
                    6, 0, 2, 0, 0, 4, 0, 0,
                    6, 0, 3, 0, 0, 3, 0, 0,
        ];
        assert_eq!(octets(&to_queue(QueueForm::Native)), golden);
    }

    /// What `nft --debug=mnl add rule inet t c tcp dport set 8080` sends, but for the register.
    #[test]
    fn a_write_names_what_covers_it() {
        let write =
            |checksum| Expression::Write { from: Register(1), base: Base::Transport, offset: 2, length: 2, checksum };
        #[rustfmt::skip]
        let golden = [
            68, 0, 1, 0x80,
                12, 0, 1, 0, b'p', b'a', b'y', b'l', b'o', b'a', b'd', 0,
                52, 0, 2, 0x80,
                    8, 0, 2, 0, 0, 0, 0, 2,
                    8, 0, 3, 0, 0, 0, 0, 2,
                    8, 0, 4, 0, 0, 0, 0, 2,
                    8, 0, 5, 0, 0, 0, 0, 9,
                    8, 0, 6, 0, 0, 0, 0, 1,
                    8, 0, 7, 0, 0, 0, 0, 16,
        ];
        assert_eq!(octets(&write(Checksum::Internet(16))), golden);
        let sctp = octets(&write(Checksum::Sctp));
        assert_eq!((sctp.last(), octets(&write(Checksum::None)).len()), (Some(&8), golden.len() - 8));
    }

    #[test]
    fn the_target_of_xtables_is_these_octets() {
        let short = |value: u16| value.to_ne_bytes();
        let mut golden = vec![52, 0, 1, 0x80];
        golden.extend([11, 0, 1, 0, b't', b'a', b'r', b'g', b'e', b't', 0, 0]);
        golden.extend([36, 0, 2, 0x80]);
        golden.extend([12, 0, 1, 0, b'N', b'F', b'Q', b'U', b'E', b'U', b'E', 0]);
        golden.extend([8, 0, 2, 0, 0, 0, 0, 3]);
        golden.extend([12, 0, 3, 0].into_iter().chain([short(2), short(4), short(3), short(0)].concat()));
        assert_eq!(octets(&to_queue(QueueForm::Xtables)), golden);
    }
}
