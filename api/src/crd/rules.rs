//! The rules (CEL) of our custom resources. Only functions that Kubernetes 1.28 has: `isIP` and friends came later.

use kube::core::Rule;

const OCTET: &str = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
const PORT: &str = "([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
const DURATION: &str = "^(0|(([0-9]+([.][0-9]+)?)(ns|us|ms|s|m|h))+)$";

fn ipv4() -> String {
    format!("({OCTET}[.]){{3}}{OCTET}")
}

/// The ways to write an IPv6 address in groups, one for each place of the `::`.
fn ipv6() -> String {
    let h = "[0-9a-fA-F]{1,4}";
    format!(
        "(({h}:){{7}}{h}|({h}:){{1,7}}:|({h}:){{1,6}}:{h}|({h}:){{1,5}}(:{h}){{1,2}}|({h}:){{1,4}}(:{h}){{1,3}}|\
         ({h}:){{1,3}}(:{h}){{1,4}}|({h}:){{1,2}}(:{h}){{1,5}}|{h}:(:{h}){{1,6}}|:((:{h}){{1,7}}|:))"
    )
}

/// An address of either family.
pub fn address() -> Rule {
    Rule::new(format!("self.matches('^({}|{})$')", ipv4(), ipv6())).message("must be an IPv4 or IPv6 address")
}

/// Host prefixes.
pub fn host_prefixes() -> Rule {
    Rule::new(format!("self.all(c, c.matches('^({}/32|{}/128)$'))", ipv4(), ipv6()))
        .message("each must be an IPv4 address with /32 or an IPv6 address with /128")
}

/// Prefixes of any length.
pub fn prefixes() -> Rule {
    Rule::new(format!("self.all(c, c.matches('^{}$'))", prefix_pattern()))
        .message("each must be an IPv4 or IPv6 prefix such as 10.0.0.0/8")
}

/// One prefix of any length.
pub fn prefix() -> Rule {
    Rule::new(format!("self.matches('^{}$')", prefix_pattern()))
        .message("must be an IPv4 or IPv6 prefix such as 10.0.0.0/8")
}

fn prefix_pattern() -> String {
    format!("({}/(3[0-2]|[12]?[0-9])|{}/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))", ipv4(), ipv6())
}

/// Ports, ranges, `any`.
pub fn ports() -> Rule {
    Rule::new(format!(
        "self.all(p, p == 'any' || p.matches('^{PORT}$') || (p.matches('^{PORT}-{PORT}$') && \
         int(p.split('-')[0]) <= int(p.split('-')[1])))"
    ))
    .message("each must be a port, a range such as 1000-2000, or any")
}

/// 0, or 3 to 65535 seconds.
pub fn hold_time() -> Rule {
    Rule::new(format!(
        "self.matches('{DURATION}') && (duration(self) == duration('0s') || (duration(self) >= duration('3s') && \
         duration(self) <= duration('65535s') && duration(self).getMilliseconds() % 1000 == 0))"
    ))
    .message("must be 0s, or whole seconds from 3s to 65535s")
}

/// An interval of BFD.
pub fn interval() -> Rule {
    between("1ms", "4294s")
}

/// A duration in these bounds.
pub fn between(least: &str, most: &str) -> Rule {
    Rule::new(format!(
        "self.matches('{DURATION}') && duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"
    ))
    .message(format!("must be a duration from {least} to {most}").as_str())
}

/// A duration of whole seconds in these bounds.
pub fn seconds_between(least: &str, most: &str) -> Rule {
    Rule::new(format!(
        "self.matches('{DURATION}') && duration(self) >= duration('{least}') && duration(self) <= duration('{most}') && \
         duration(self).getMilliseconds() % 1000 == 0"
    ))
    .message(format!("must be whole seconds from {least} to {most}").as_str())
}

/// The name of a network interface.
pub fn interface() -> Rule {
    Rule::new("self.matches('^[A-Za-z0-9_.@+=-]{1,15}$') && self != '.' && self != '..'")
        .message("must be the name of an interface: 1 to 15 letters, digits or _ . @ + = -")
}

/// An AS number of a neighbour.
pub fn asn() -> Rule {
    Rule::new("self >= 1 && self <= 4294967295 && self != 23456")
        .message("must be an AS number from 1 to 4294967295, but not 23456 (AS_TRANS)")
}

/// Standard communities.
pub fn communities() -> Rule {
    Rule::new(format!(
        "self.all(c, c in ['no-export', 'no-advertise', 'no-export-subconfed', 'no-peer', 'blackhole', \
         'graceful-shutdown'] || c.matches('^{PORT}:{PORT}$'))"
    ))
    .message("each must be a community such as 65000:100 or no-export")
}

/// Large communities.
pub fn large_communities() -> Rule {
    Rule::new(
        "self.all(c, c.matches('^[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$') && c.split(':').all(n, int(n) <= 4294967295))",
    )
    .message("each must be a large community such as 4248829953:1:2")
}

/// Byte matches. Their offsets and values are checked by the parser.
pub fn byte_matches() -> Rule {
    Rule::new(
        "self.all(m, m.matches('^ *(tcp|udp|sctp) *\\\\[ *[0-9]{1,4} *: *[124] *\\\\] *(& *(0x[0-9a-fA-F]{1,8}|[0-9]{1,10}) *)?= *(0x[0-9a-fA-F]{1,8}|[0-9]{1,10}) *$'))",
    )
    .message("each must be of the form tcp[0:2] & 0xff00 = 0x1200, with 1, 2 or 4 octets")
}

/// Byte matches of protocols that the route has.
pub fn byte_matches_of_the_route() -> Rule {
    // Spelled out: how long a member of `protocols` may be is not known to the cost estimate of older servers.
    let of = |name: &str| format!("(m.contains('{}') && '{name}' in self.protocols)", name.to_lowercase());
    let any = [of("TCP"), of("UDP"), of("SCTP")].join(" || ");
    Rule::new(format!("!has(self.byteMatches) || self.byteMatches.all(m, {any})"))
        .message("byteMatches must be of a protocol of the route")
}
