//! Rules: selectors, actions, and whose they are.

use std::collections::BTreeSet;

use martlet_netlink::{Action, Family, Kernel, Mark, Object, Owner, Rule, diff};

use crate::sys::{in_namespace, ip};
use crate::{assert_ok, make, objects, owner, set};

fn rule(family: Family, priority: u32, action: Action) -> Rule {
    Rule { family, priority, from: None, to: None, mark: None, invert: false, action }
}

#[test]
fn rules_with_all_selectors_and_actions_come_and_go() {
    in_namespace(async || {
        let all = Owner { priorities: vec![50..=102], ..owner() };
        let (mut kernel, _events) = Kernel::open(all).unwrap();
        let mark = |value, mask| Some(Mark { value, mask });
        let mut want = BTreeSet::new();
        for (family, vip) in [(Family::Ipv4, "20.0.0.1/32"), (Family::Ipv6, "2000::1/128")] {
            let vip = Some(vip.parse().unwrap());
            want.extend([
                Object::Rule(Rule { from: vip, ..rule(family, 100, Action::Table(4096)) }),
                Object::Rule(Rule { from: vip, ..rule(family, 101, Action::Table(4097)) }),
                Object::Rule(Rule { to: vip, ..rule(family, 102, Action::Table(4097)) }),
                Object::Rule(Rule { mark: mark(0, u32::MAX), invert: true, ..rule(family, 50, Action::Goto(60)) }),
                Object::Rule(Rule { mark: mark(0x1380, 0xfff0), ..rule(family, 60, Action::Goto(70)) }),
                Object::Rule(Rule { mark: mark(0x1388, u32::MAX), ..rule(family, 70, Action::Table(5000)) }),
                Object::Rule(Rule { mark: mark(5, 0xff), from: vip, to: vip, ..rule(family, 71, Action::Blackhole) }),
            ]);
        }
        make(&mut kernel, &want).await;
        let text = ip("rule show");
        assert!(text.contains("100:\tfrom 20.0.0.1 lookup 4096 proto 201"), "{text}");
        assert!(text.contains("60:\tfrom all fwmark 0x1380/0xfff0 goto 70 proto 201"), "{text}");
        let some = want.iter().take(5).cloned().collect();
        make(&mut kernel, &some).await;
        make(&mut kernel, &set([])).await;
        assert_eq!(ip("rule show").lines().count(), 3, "the kernel's own three");
    });
}

#[test]
fn a_rule_that_is_there_or_gone_already_is_done() {
    in_namespace(async || {
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        let want = set([
            rule(Family::Ipv4, 100, Action::Table(4096)).into(),
            rule(Family::Ipv6, 100, Action::Table(4096)).into(),
        ]);
        make(&mut kernel, &want).await;
        assert_ok(&kernel.apply(&diff(&set([]), &want)).await);
        assert_eq!(objects(&mut kernel).await, want);
        make(&mut kernel, &set([])).await;
        assert_ok(&kernel.apply(&diff(&want, &set([]))).await);
    });
}

#[test]
fn rules_of_others_are_neither_seen_nor_touched() {
    in_namespace(async || {
        let (mut kernel, _events) = Kernel::open(owner()).unwrap();
        // Another protocol with equal selectors, another priority, and one that our values cannot express.
        ip("rule add from 20.0.0.1 lookup 4096 priority 100 protocol 4");
        ip("rule add from 20.0.0.1 lookup 4096 priority 99 protocol 201");
        ip("rule add from 20.0.0.1 iif lo lookup 4096 priority 101 protocol 201");
        ip("-6 rule add from 2000::1 lookup 4096 priority 100 protocol 4");
        let others = || [ip("rule show"), ip("-6 rule show")];
        let before = others();
        assert_eq!(objects(&mut kernel).await, set([]));
        let ours = set([
            Object::Rule(Rule {
                from: Some("20.0.0.1/32".parse().unwrap()),
                ..rule(Family::Ipv4, 100, Action::Table(4096))
            }),
            Object::Rule(Rule {
                from: Some("2000::1/128".parse().unwrap()),
                ..rule(Family::Ipv6, 100, Action::Table(4096))
            }),
        ]);
        // Equal selectors: the kernel knows no second one, and the first does what ours would.
        assert_ok(&kernel.apply(&diff(&set([]), &ours)).await);
        assert_ok(&kernel.apply(&diff(&ours, &set([]))).await);
        assert_eq!(others(), before);
    });
}
