//! Objects in the words of `ip route` and `ip rule`, for messages and logs. It knows the values only.

use std::fmt::{Display, Formatter, Result};

use crate::model::{Action, Family, NextHop, Object, Route, RouteKind, Rule};

impl From<Route> for Object {
    fn from(route: Route) -> Self {
        Self::Route(route)
    }
}

impl From<Rule> for Object {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}

impl Display for Object {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Route(route) => route.fmt(f),
            Self::Rule(rule) => rule.fmt(f),
        }
    }
}

impl Display for Route {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "route ")?;
        match &self.kind {
            RouteKind::Blackhole => write!(f, "blackhole {} table {} metric {}", self.prefix, self.table, self.metric),
            RouteKind::Unicast(hops) => {
                write!(f, "{} table {} metric {}", self.prefix, self.table, self.metric)?;
                match hops.as_slice() {
                    [hop] => write!(f, " {hop}"),
                    hops => hops.iter().try_for_each(|hop| write!(f, " nexthop {hop} weight {}", hop.weight)),
                }
            }
        }
    }
}

impl Display for NextHop {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match (self.gateway, self.interface) {
            (Some(gateway), Some(interface)) => write!(f, "via {gateway} dev {interface}")?,
            (Some(gateway), None) => write!(f, "via {gateway}")?,
            (None, Some(interface)) => write!(f, "dev {interface}")?,
            (None, None) => write!(f, "without gateway and interface")?,
        }
        if self.onlink { write!(f, " onlink") } else { Ok(()) }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let family = match self.family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        };
        write!(f, "{family} rule {}:", self.priority)?;
        if self.invert {
            write!(f, " not")?;
        }
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if let Some(mark) = self.mark {
            write!(f, " fwmark {:#x}/{:#x}", mark.value, mark.mask)?;
        }
        match self.action {
            Action::Table(table) => write!(f, " lookup {table}"),
            Action::Goto(priority) => write!(f, " goto {priority}"),
            Action::Blackhole => write!(f, " blackhole"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mark;

    #[test]
    fn objects_read_like_the_output_of_ip() {
        let hop = |gateway: &str, interface, weight| NextHop {
            gateway: Some(gateway.parse().unwrap()),
            interface,
            weight,
            onlink: false,
        };
        let kind = RouteKind::Unicast(vec![hop("192.0.2.1", Some(2), 1), hop("fe80::1", Some(3), 4)]);
        let route = Route { table: 4096, prefix: "0.0.0.0/0".parse().unwrap(), metric: 20, kind };
        let text = "route 0.0.0.0/0 table 4096 metric 20 nexthop via 192.0.2.1 dev 2 weight 1 \
                    nexthop via fe80::1 dev 3 weight 4";
        assert_eq!(Object::from(route).to_string(), text);
        let rule = Rule {
            family: Family::Ipv4,
            priority: 50,
            from: Some("20.0.0.1/32".parse().unwrap()),
            to: None,
            mark: Some(Mark { value: 0x1380, mask: 0xfff0 }),
            invert: true,
            action: Action::Goto(60),
        };
        let text = "IPv4 rule 50: not from 20.0.0.1/32 fwmark 0x1380/0xfff0 goto 60";
        assert_eq!(Object::from(rule).to_string(), text);
    }
}
