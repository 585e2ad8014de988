//! The spec of a `GatewayRouter`, checked. The values of keys are filled in by the acceptance, which knows the Secrets.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::value::{self, unicast};
use super::{Check, Refusal};
use crate::crd;
use crate::readiness::Families;
use crate::view::{Bfd, Bgp, BgpExtra, GatewayRouter, Import, Password, Protocol, TcpAo};

/// TTL of a multihop session that does not say.
const MULTIHOP_TTL: u8 = 64;
/// From how many percent of the maximum on there is a warning.
const WARNING_PERCENT: u8 = 75;
/// The longest shutdown communication, octets: RFC 9003.
const LONGEST_SHUTDOWN: usize = 255;
const LONGEST_DESCRIPTION: usize = 256;
const MOST_COMMUNITIES: usize = 64;
const MOST_IMPORT_PREFIXES: usize = 256;
/// The longest interval that a BFD packet can carry (32 bits of microseconds), in whole seconds as the schema has it.
const LONGEST_INTERVAL: Duration = Duration::from_secs(4294);
const ADDRESS: &str = "must be an IPv4 or IPv6 unicast address";

/// The accepted value of a spec.
///
/// # Errors
///
/// All that is wrong with it.
pub fn router(spec: &crd::GatewayRouterSpec) -> Result<GatewayRouter, Vec<Refusal>> {
    let mut check = Check::default();
    let address = check.parsed("spec.address", &spec.address, unicast(&spec.address), ADDRESS);
    if let Some(name) = &spec.interface
        && !value::interface(name)
    {
        check.refuse(
            "spec.interface",
            name,
            "must be the name of an interface: 1 to 15 letters, digits or _ . @ + = -",
        );
    }
    if let Some(text) = &spec.description
        && text.chars().count() > LONGEST_DESCRIPTION
    {
        check.refuse("spec.description", text, format!("must have at most {LONGEST_DESCRIPTION} characters"));
    }
    let protocol = protocol(&mut check, spec, address);
    check.finish(address.map(|address| GatewayRouter {
        address,
        interface: spec.interface.as_deref().map(Arc::from),
        description: spec.description.as_deref().map(Arc::from),
        protocol,
    }))
}

fn protocol(check: &mut Check, spec: &crd::GatewayRouterSpec, address: Option<IpAddr>) -> Protocol {
    use crd::RoutingProtocol::{Bgp, Static};
    match (spec.protocol, &spec.bgp, &spec.static_) {
        (None, Some(_), Some(_)) => {
            check.refuse("spec.static", "", "excludes spec.bgp: remove one of them");
        }
        (Some(Bgp), _, Some(_)) => check.refuse("spec.static", "", "must be removed where spec.protocol is BGP"),
        (Some(Static), Some(_), _) => check.refuse("spec.bgp", "", "must be removed where spec.protocol is Static"),
        _ => {}
    }
    let is_static = match spec.protocol {
        Some(protocol) => protocol == Static,
        None => spec.static_.is_some() && spec.bgp.is_none(),
    };
    if is_static {
        let profile = spec.static_.as_ref().and_then(|s| s.bfd.as_ref());
        Protocol::Static(profile.and_then(|profile| bfd(check, "spec.static.bfd", profile, None)))
    } else {
        let default = crd::BgpSpec::default();
        Protocol::Bgp(Box::new(bgp(check, spec.bgp.as_ref().unwrap_or(&default), address)))
    }
}

fn bgp(check: &mut Check, spec: &crd::BgpSpec, address: Option<IpAddr>) -> Bgp {
    let port = |check: &mut Check, field: &str, value: Option<i64>| {
        value.and_then(|value| check.number::<u16>(field, value, 1..=65535))
    };
    let extra = extra(check, spec, address);
    let password = spec.auth.as_ref().map(|auth| password(check, "spec.bgp.auth", &auth.key_source, &auth.key_name));
    Bgp {
        local_asn: spec.local_asn.and_then(|asn| as_number(check, "spec.bgp.localASN", asn)),
        remote_asn: spec.remote_asn.and_then(|asn| as_number(check, "spec.bgp.remoteASN", asn)),
        hold_time_s: spec.hold_time.as_ref().and_then(|text| {
            let seconds = whole_seconds(text).filter(|s| *s == 0 || *s >= 3);
            check.parsed("spec.bgp.holdTime", text, seconds, "must be 0s, or whole seconds from 3s to 65535s")
        }),
        local_port: port(check, "spec.bgp.localPort", spec.local_port),
        remote_port: port(check, "spec.bgp.remotePort", spec.remote_port),
        bfd: spec.bfd.as_ref().and_then(|profile| bfd(check, "spec.bgp.bfd", profile, spec.multihop.as_ref())),
        password,
        extra,
    }
}

fn extra(check: &mut Check, spec: &crd::BgpSpec, address: Option<IpAddr>) -> BgpExtra {
    let ttl_security = spec.ttl_security.unwrap_or(false);
    if ttl_security && spec.multihop.is_some() {
        check.refuse("spec.bgp.ttlSecurity", "true", "excludes spec.bgp.multihop: remove one of them");
    }
    if spec.auth.is_some() && spec.tcp_ao.is_some() {
        check.refuse("spec.bgp.tcpAo", "", "excludes spec.bgp.auth: remove one of them");
    }
    let unsigned = |check: &mut Check, field: &str, value: Option<i64>| {
        value.and_then(|value| check.number::<u32>(field, value, 0..=i64::from(u32::MAX)))
    };
    BgpExtra {
        passive: spec.passive.unwrap_or(false),
        multihop_ttl: spec.multihop.as_ref().map(|multihop| ttl(check, "spec.bgp.multihop.ttl", multihop)),
        ttl_security,
        source_address: spec.source_address.as_ref().and_then(|text| {
            let source = check.parsed("spec.bgp.sourceAddress", text, unicast(text), ADDRESS)?;
            let same = address.is_none_or(|address| address.is_ipv4() == source.is_ipv4());
            check.parsed(
                "spec.bgp.sourceAddress",
                text,
                same.then_some(source),
                "must be of the family of spec.address",
            )
        }),
        connect_retry: spec.connect_retry.as_ref().and_then(|text| {
            between(check, "spec.bgp.connectRetry", text, Duration::from_millis(10), Duration::from_secs(65535))
        }),
        communities: list(
            check,
            "spec.bgp.communities",
            spec.communities.as_deref(),
            value::community,
            "a community such as 65000:100 or no-export",
        ),
        large_communities: list(
            check,
            "spec.bgp.largeCommunities",
            spec.large_communities.as_deref(),
            value::large_community,
            "a large community such as 4248829953:1:2",
        ),
        med: unsigned(check, "spec.bgp.med", spec.med),
        local_preference: unsigned(check, "spec.bgp.localPreference", spec.local_preference),
        prepend: spec.prepend.and_then(|n| check.number("spec.bgp.prepend", n, 0..=32)).unwrap_or(0),
        import: spec.import.as_ref().and_then(|spec| import(check, spec)),
        maximum_prefixes: spec.maximum_prefixes.as_ref().and_then(|spec| maximum_prefixes(check, spec)),
        graceful_restart_s: spec.graceful_restart.as_ref().and_then(|restart| {
            let seconds = whole_seconds(&restart.restart_time).filter(|s| (1..=4095).contains(s));
            let field = "spec.bgp.gracefulRestart.restartTime";
            check.parsed(field, &restart.restart_time, seconds, "must be whole seconds from 1s to 4095s")
        }),
        long_lived: spec.long_lived_stale_time.as_ref().and_then(|text| {
            between(
                check,
                "spec.bgp.longLivedStaleTime",
                text,
                Duration::from_secs(1),
                Duration::from_secs(0x00ff_ffff),
            )
        }),
        add_path_receive: spec.add_path_receive.unwrap_or(false),
        disable_family: spec.disable_family_on_error.unwrap_or(false),
        role: spec.role.map(|role| Arc::from(role_name(role))),
        shutdown: spec.shutdown.as_ref().filter(|shutdown| shutdown.switch).map(|shutdown| {
            let text = shutdown.message.as_deref().unwrap_or("");
            if text.len() > LONGEST_SHUTDOWN {
                check.refuse("spec.bgp.shutdown.message", text, "must have at most 255 octets");
            }
            Arc::from(text)
        }),
        families: spec.families.as_ref().map(|families| {
            if families.is_empty() {
                check.refuse("spec.bgp.families", "[]", "must name IPv4, IPv6 or both, or be removed");
            }
            Families { ipv4: families.contains(&crd::Family::Ipv4), ipv6: families.contains(&crd::Family::Ipv6) }
        }),
        tcp_ao: spec.tcp_ao.as_ref().and_then(|spec| tcp_ao(check, spec)),
    }
}

fn bfd(check: &mut Check, field: &str, spec: &crd::BfdSpec, path: Option<&crd::Multihop>) -> Option<Bfd> {
    let house = Bfd::default();
    let mut interval = |name: &str, text: Option<&String>| {
        let text = text?;
        between(check, &format!("{field}.{name}"), text, Duration::from_millis(1), LONGEST_INTERVAL)
    };
    let min_tx = interval("minTx", spec.min_tx.as_ref()).unwrap_or(house.min_tx);
    let min_rx = interval("minRx", spec.min_rx.as_ref()).unwrap_or(house.min_rx);
    let echo = interval("echo", spec.echo.as_ref());
    let echo_receive = interval("echoReceive", spec.echo_receive.as_ref());
    let unaffiliated = spec.unaffiliated.unwrap_or(false);
    let multiplier = spec.multiplier.and_then(|n| check.number(&format!("{field}.multiplier"), n, 1..=255));
    let multihop = spec.multihop.as_ref().or(path);
    let multihop_hops = multihop.map(|multihop| ttl(check, &format!("{field}.multihop.ttl"), multihop));
    if echo.is_some() && multihop.is_some() {
        check.refuse(format!("{field}.echo"), "", "excludes multihop (RFC 5883, section 3): remove one of them");
    }
    if unaffiliated && spec.echo.is_none() {
        check.refuse(
            format!("{field}.unaffiliated"),
            "true",
            "must come with echo, the interval of the packets (RFC 9747)",
        );
    }
    let auth = spec.authentication.as_ref().map(|auth| {
        let field = format!("{field}.authentication");
        let key_id = check.number(&format!("{field}.keyID"), auth.key_id, 0..=255).unwrap_or(0);
        (Arc::from(authentication_name(auth.type_)), key_id, password(check, &field, &auth.key_source, &auth.key_name))
    });
    let accepted = spec.authentication.iter().flat_map(|auth| auth.accept.iter().flatten()).enumerate();
    let auth_accepts = accepted.map(|(place, key)| {
        let field = format!("{field}.authentication.accept[{place}]");
        let key_id = check.number(&format!("{field}.keyID"), key.key_id, 0..=255).unwrap_or(0);
        (key_id, password(check, &field, &key.key_source, &key.key_name))
    });
    let auth_accepts = auth_accepts.collect();
    // Values of a profile that is switched off are checked too: it may be switched on at any time.
    spec.switch.unwrap_or(false).then(|| Bfd {
        min_tx,
        min_rx,
        multiplier: multiplier.unwrap_or(house.multiplier),
        strict: spec.strict.unwrap_or(false),
        echo,
        echo_receive,
        unaffiliated,
        auth,
        auth_accepts,
        multihop_hops,
    })
}

fn import(check: &mut Check, spec: &crd::Import) -> Option<Import> {
    let field = "spec.bgp.import";
    match (spec.default_only.unwrap_or(false), &spec.prefixes) {
        (true, None) => Some(Import::Default),
        (false, Some(prefixes)) if !prefixes.is_empty() && prefixes.len() <= MOST_IMPORT_PREFIXES => {
            let bounds = prefixes.iter().enumerate().filter_map(|(place, spec)| {
                let field = format!("{field}.prefixes[{place}]");
                let prefix = check.parsed(
                    format!("{field}.prefix"),
                    &spec.prefix,
                    value::prefix(&spec.prefix),
                    "must be a prefix such as 10.0.0.0/8",
                )?;
                let all = i64::from(prefix.prefix_len())..=i64::from(prefix.max_prefix_len());
                let least = spec.min_length.unwrap_or(*all.start());
                let most = spec.max_length.unwrap_or(*all.end());
                let least = check.number(&format!("{field}.minLength"), least, all.clone())?;
                let most = check.number(&format!("{field}.maxLength"), most, i64::from(least)..=*all.end())?;
                Some((prefix, least, most))
            });
            Some(Import::Prefixes(bounds.collect()))
        }
        _ => {
            check.refuse(field, "", "must be either `defaultOnly: true`, or 1 to 256 prefixes");
            None
        }
    }
}

fn maximum_prefixes(check: &mut Check, spec: &crd::MaximumPrefixes) -> Option<(u32, u8, Option<Duration>)> {
    let field = "spec.bgp.maximumPrefixes";
    let limit = check.number(&format!("{field}.limit"), spec.limit, 1..=i64::from(u32::MAX));
    let percent = spec
        .warning_percent
        .map_or(Some(WARNING_PERCENT), |n| check.number(&format!("{field}.warningPercent"), n, 1..=100));
    let restart = spec.restart_after.as_ref().and_then(|text| {
        between(check, &format!("{field}.restartAfter"), text, Duration::from_secs(1), Duration::from_hours(24))
    });
    Some((limit?, percent?, restart))
}

fn tcp_ao(check: &mut Check, spec: &crd::TcpAuthentication) -> Option<TcpAo> {
    let field = "spec.bgp.tcpAo";
    let send_id = check.number(&format!("{field}.sendID"), spec.send_id, 0..=255);
    let receive_id = check.number(&format!("{field}.receiveID"), spec.receive_id, 0..=255);
    let algorithm = match spec.algorithm.unwrap_or(crd::TcpAuthenticationAlgorithm::HmacSha1) {
        crd::TcpAuthenticationAlgorithm::HmacSha1 => "HMAC-SHA-1-96",
        crd::TcpAuthenticationAlgorithm::AesCmac => "AES-128-CMAC-96",
    };
    let key = password(check, field, &spec.key_source, &spec.key_name);
    Some(TcpAo { send_id: send_id?, receive_id: receive_id?, algorithm: Arc::from(algorithm), key })
}

fn password(check: &mut Check, field: &str, source: &str, key: &str) -> Password {
    for (name, text) in [("keySource", source), ("keyName", key)] {
        if !(1..=253).contains(&text.len()) {
            check.refuse(format!("{field}.{name}"), text, "must have 1 to 253 characters");
        }
    }
    Password { source: Arc::from(source), key: Arc::from(key), secret: None }
}

fn ttl(check: &mut Check, field: &str, multihop: &crd::Multihop) -> u8 {
    multihop.ttl.and_then(|ttl| check.number(field, ttl, 1..=255)).unwrap_or(MULTIHOP_TTL)
}

fn as_number(check: &mut Check, field: &str, asn: i64) -> Option<u32> {
    let parsed = u32::try_from(asn).ok().filter(|asn| ![0, 23456].contains(asn));
    check.parsed(field, asn, parsed, "must be an AS number from 1 to 4294967295, but not 23456 (AS_TRANS)")
}

fn list<T: Ord>(
    check: &mut Check,
    field: &str,
    texts: Option<&[String]>,
    parse: impl Fn(&str) -> Option<T>,
    what: &str,
) -> std::collections::BTreeSet<T> {
    let texts = texts.unwrap_or_default();
    if texts.len() > MOST_COMMUNITIES {
        check.refuse(field, texts.len(), format!("must have at most {MOST_COMMUNITIES} items"));
    }
    let values = texts.iter().enumerate();
    values
        .filter_map(|(place, text)| {
            check.parsed(format!("{field}[{place}]"), text, parse(text), &format!("must be {what}"))
        })
        .collect()
}

fn between(check: &mut Check, field: &str, text: &str, least: Duration, most: Duration) -> Option<Duration> {
    let parsed = value::duration(text).filter(|duration| (least..=most).contains(duration));
    check.parsed(field, text, parsed, &format!("must be a duration from {least:?} to {most:?}, such as 300ms or 1.5s"))
}

fn whole_seconds(text: &str) -> Option<u16> {
    let duration = value::duration(text).filter(|duration| duration.subsec_nanos() == 0)?;
    u16::try_from(duration.as_secs()).ok()
}

const fn role_name(role: crd::Role) -> &'static str {
    match role {
        crd::Role::Provider => "provider",
        crd::Role::Rs => "rs",
        crd::Role::RsClient => "rs-client",
        crd::Role::Customer => "customer",
        crd::Role::Peer => "peer",
    }
}

const fn authentication_name(kind: crd::BfdAuthenticationType) -> &'static str {
    match kind {
        crd::BfdAuthenticationType::SimplePassword => "SimplePassword",
        crd::BfdAuthenticationType::KeyedMd5 => "KeyedMD5",
        crd::BfdAuthenticationType::MeticulousKeyedMd5 => "MeticulousKeyedMD5",
        crd::BfdAuthenticationType::KeyedSha1 => "KeyedSHA1",
        crd::BfdAuthenticationType::MeticulousKeyedSha1 => "MeticulousKeyedSHA1",
    }
}
