//! The system calls of the BFD thread that no safe crate offers: precise waiting, batches of datagrams with their TTL,
//! a few socket options, the scheduler.
//!
//! Nothing here knows BFD. Every function is safe to call; what it hands to the kernel it owns or borrows for the call.
#![expect(unsafe_code, reason = "system calls that neither std nor socket2 offers; one SAFETY comment each")]

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};
use martlet_clock::Instant;
use socket2::SockAddr;

/// Datagrams a system call.
pub(super) const BATCH: usize = 32;
/// Octets of a datagram that are read: more than any BFD packet has.
const DATAGRAM: usize = 256;
/// Octets of control messages: TTL, packet info and the time of arrival need 96.
const CONTROL: usize = 128;

/// `CLOCK_MONOTONIC`.
pub(super) fn now() -> Instant {
    Instant::from_nanos(nanos(read_clock(libc::CLOCK_MONOTONIC)))
}

fn read_clock(clock: libc::clockid_t) -> libc::timespec {
    // SAFETY: a timespec of zeros is valid, and the kernel writes one.
    unsafe {
        let mut time: libc::timespec = zeroed();
        libc::clock_gettime(clock, &raw mut time);
        time
    }
}

fn nanos(time: libc::timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or_default()
}

/// Waits until one of `sockets` can be read, at most `limit`; says which can.
pub(super) fn wait(sockets: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut waiting: Vec<libc::pollfd> =
        sockets.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = waiting.len().try_into().unwrap_or(libc::nfds_t::MAX);
    // SAFETY: `waiting` has `count` entries, `limit` is null or lives until after the call, no signal mask is given.
    let ready = unsafe { libc::ppoll(waiting.as_mut_ptr(), count, limit, std::ptr::null()) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(vec![false; waiting.len()]) } else { Err(error) };
    }
    Ok(waiting.iter().map(|entry| entry.revents != 0).collect())
}

/// Sleeps; what comes meanwhile waits.
pub(super) fn pause(duration: Duration) {
    let _ = wait(&[], Some(duration));
}

/// A datagram that came.
#[derive(Debug)]
pub(super) struct Datagram<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// The address it was sent to.
    pub to: Option<IpAddr>,
    /// TTL or hop limit.
    pub ttl: Option<u8>,
    /// How long it waited in the socket, by the system's clock.
    pub waited: Duration,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Room for a batch of datagrams.
pub(super) struct Inbox {
    payloads: Vec<[u8; DATAGRAM]>,
    controls: Vec<[u64; CONTROL / 8]>,
    names: Vec<libc::sockaddr_storage>,
    headers: Vec<libc::mmsghdr>,
    filled: usize,
}

// SAFETY: the pointers in `headers` are set and used within `receive` only.
unsafe impl Send for Inbox {}

impl Inbox {
    pub fn new() -> Self {
        // SAFETY: zeros are a valid sockaddr_storage and a valid mmsghdr.
        let (name, header) = unsafe { (zeroed(), zeroed()) };
        Self {
            payloads: vec![[0; DATAGRAM]; BATCH],
            controls: vec![[0; CONTROL / 8]; BATCH],
            names: vec![name; BATCH],
            headers: vec![header; BATCH],
            filled: 0,
        }
    }

    /// Reads what waits, at most [`BATCH`] datagrams; says how many came. Never blocks.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.filled = 0;
        let mut vectors: Vec<libc::iovec> = self
            .payloads
            .iter_mut()
            .map(|payload| libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: DATAGRAM })
            .collect();
        let rooms = self.headers.iter_mut().zip(&mut self.names).zip(&mut self.controls).zip(&mut vectors);
        for (((header, name), control), vector) in rooms {
            header.msg_len = 0;
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = len_of::<libc::sockaddr_storage>();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL;
            header.msg_hdr.msg_flags = 0;
        }
        let room = u32::try_from(self.headers.len()).unwrap_or_default();
        // SAFETY: every header points to a name, a buffer and a control buffer that outlive the call, with their lengths.
        let read = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), room, libc::MSG_DONTWAIT, null_mut())
        };
        if let Ok(read) = usize::try_from(read) {
            self.filled = read;
            return Ok(read);
        }
        let error = io::Error::last_os_error();
        let nothing = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
        if nothing { Ok(0) } else { Err(error) }
    }

    /// The datagrams that the last call of `receive` read.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        let read = self.headers.iter().zip(&self.names).zip(&self.payloads).take(self.filled);
        let now = nanos(read_clock(libc::CLOCK_REALTIME));
        read.filter_map(move |((header, name), payload)| {
            let from = socket_address(name, header.msg_hdr.msg_namelen)?;
            let length = usize::try_from(header.msg_len).unwrap_or(DATAGRAM).min(DATAGRAM);
            let (to, ttl, arrived) = control_messages(&header.msg_hdr);
            let waited = Duration::from_nanos(arrived.map_or(0, |at| now.saturating_sub(at)));
            Some(Datagram { from, to, ttl, waited, payload: payload.get(..length)? })
        })
    }
}

fn socket_address(name: &libc::sockaddr_storage, len: socklen_t) -> Option<SocketAddr> {
    // SAFETY: the kernel wrote `len` octets of an address into `name`, the rest is zeros.
    unsafe {
        SockAddr::try_init(|storage, room| {
            storage.cast::<libc::sockaddr_storage>().write(*name);
            *room = len;
            Ok(())
        })
    }
    .ok()
    .and_then(|((), address)| address.as_socket())
}

/// The address that a datagram was sent to, its TTL, and when the kernel got it (`CLOCK_REALTIME`).
fn control_messages(header: &libc::msghdr) -> (Option<IpAddr>, Option<u8>, Option<u64>) {
    let (mut to, mut ttl, mut arrived) = (None, None, None);
    // SAFETY: the kernel filled the control buffer, which lives as long as `header`; CMSG_NXTHDR stays within it, and the
    // data of a message is read unaligned, with the type that its level and type promise.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    ttl = u8::try_from(data.cast::<c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    to = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                    arrived = Some(nanos(data.cast::<libc::timespec>().read_unaligned()));
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    (to, ttl, arrived)
}

/// A datagram to send.
#[derive(Debug)]
pub(super) struct Letter {
    /// To whom.
    pub to: SocketAddr,
    /// From which of our addresses; `None`: the kernel chooses.
    pub from: Option<IpAddr>,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Sends `letters` in batches. Those that the kernel refuses are passed over; their errors are returned.
pub(super) fn send(socket: BorrowedFd<'_>, letters: &[Letter]) -> Vec<io::Error> {
    let mut errors = Vec::new();
    for batch in letters.chunks(BATCH) {
        send_batch(socket, batch, &mut errors);
    }
    errors
}

fn send_batch(socket: BorrowedFd<'_>, batch: &[Letter], errors: &mut Vec<io::Error>) {
    let names: Vec<SockAddr> = batch.iter().map(|letter| letter.to.into()).collect();
    let mut controls: Vec<([u64; CONTROL / 8], usize)> = batch.iter().map(|letter| source(letter.from)).collect();
    let mut vectors: Vec<libc::iovec> = batch
        .iter()
        .map(|letter| libc::iovec {
            iov_base: letter.payload.as_ptr().cast_mut().cast(),
            iov_len: letter.payload.len(),
        })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = Vec::with_capacity(batch.len());
    for ((name, (control, used)), vector) in names.iter().zip(&mut controls).zip(&mut vectors) {
        // SAFETY: zeros are a valid mmsghdr.
        let mut header: libc::mmsghdr = unsafe { zeroed() };
        header.msg_hdr.msg_name = name.as_ptr().cast::<c_void>().cast_mut();
        header.msg_hdr.msg_namelen = name.len();
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
        if *used > 0 {
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = *used;
        }
        headers.push(header);
    }
    let mut rest = headers.as_mut_slice();
    while !rest.is_empty() {
        let count = u32::try_from(rest.len()).unwrap_or_default();
        // SAFETY: every header points to a name, a payload and a control buffer that outlive the call; the kernel only
        // reads them.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        let done = usize::try_from(sent).unwrap_or_else(|_| {
            errors.push(io::Error::last_os_error());
            1
        });
        rest = rest.get_mut(done.max(1)..).unwrap_or_default();
    }
}

/// The control message that chooses a source address, and how many octets it takes.
fn source(from: Option<IpAddr>) -> ([u64; CONTROL / 8], usize) {
    let control = [0_u64; CONTROL / 8];
    match from {
        None => (control, 0),
        Some(IpAddr::V4(address)) => {
            let spec = libc::in_addr { s_addr: u32::from(address).to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: spec, ipi_addr: libc::in_addr { s_addr: 0 } };
            control_message(control, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
        }
        Some(IpAddr::V6(address)) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: address.octets() }, ipi6_ifindex: 0 };
            control_message(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
        }
    }
}

fn control_message<T>(
    mut control: [u64; CONTROL / 8],
    level: c_int,
    kind: c_int,
    info: T,
) -> ([u64; CONTROL / 8], usize) {
    let len = len_of::<T>();
    // SAFETY: CMSG_SPACE of a packet info is far less than CONTROL octets, and the buffer is aligned for a cmsghdr.
    unsafe {
        let message = control.as_mut_ptr().cast::<libc::cmsghdr>();
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = libc::CMSG_LEN(len).try_into().unwrap_or_default();
        libc::CMSG_DATA(message).cast::<T>().write_unaligned(info);
        let used = libc::CMSG_SPACE(len).try_into().unwrap_or_default();
        (control, used)
    }
}

/// Asks the kernel to tell TTL and destination address with every datagram.
pub(super) fn tell_ttl_and_destination(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    let options = if ipv6 {
        [(libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT), (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)]
    } else {
        [(libc::IPPROTO_IP, libc::IP_RECVTTL), (libc::IPPROTO_IP, libc::IP_PKTINFO)]
    };
    options.into_iter().try_for_each(|(level, name)| switch_on(socket, level, name))
}

/// Asks the kernel to tell with every datagram when it came.
pub(super) fn tell_arrival(socket: BorrowedFd<'_>) -> io::Result<()> {
    switch_on(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)
}

fn switch_on(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: the value is an int that lives until after the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), len_of::<c_int>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The index of an interface; `None` while there is none of that name.
pub(super) fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` ends with a zero octet and lives until after the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// A socket that can be read whenever an interface came, went or changed.
pub(super) fn link_events() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the descriptor is new and owned by nobody else; the address is a sockaddr_nl that lives until after the call.
    unsafe {
        let socket = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_nl = zeroed();
        address.nl_family = libc::AF_NETLINK.try_into().unwrap_or_default();
        address.nl_groups = libc::RTMGRP_LINK.try_into().unwrap_or_default();
        let bound = libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len_of::<libc::sockaddr_nl>());
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

/// Reads and forgets whatever waits in a socket.
pub(super) fn drain(socket: BorrowedFd<'_>) {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    loop {
        // SAFETY: the kernel writes at most the length of the buffer, which nobody reads.
        let read =
            unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
        let overrun = read < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
        if read <= 0 && !overrun {
            return;
        }
    }
}

/// A socket for the IP packets of one interface and family that carry UDP to `port`.
pub(super) fn packet_socket(index: u32, ipv6: bool, port: u16) -> io::Result<OwnedFd> {
    let filter = if ipv6 { filter_ipv6(port) } else { filter_ipv4(port) };
    let program =
        libc::sock_fprog { len: filter.len().try_into().unwrap_or_default(), filter: filter.as_ptr().cast_mut() };
    let address = link_layer(index, ipv6, &[]);
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the descriptor is new and owned by nobody else; filter and address live until after the calls that read
    // them. The socket is bound after the filter is in place, so nothing else ever waits in it.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, kind, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let value = (&raw const program).cast();
        let len = len_of::<libc::sock_fprog>();
        if libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, value, len) < 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len_of::<libc::sockaddr_ll>()) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

/// Sends an IP packet to a link-layer address.
pub(super) fn send_packet(socket: BorrowedFd<'_>, index: u32, ipv6: bool, to: &[u8], packet: &[u8]) -> io::Result<()> {
    let address = link_layer(index, ipv6, to);
    // SAFETY: packet and address live until after the call, with their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            len_of::<libc::sockaddr_ll>(),
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn link_layer(index: u32, ipv6: bool, to: &[u8]) -> libc::sockaddr_ll {
    // SAFETY: zeros are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let protocol = if ipv6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
    address.sll_family = libc::AF_PACKET.try_into().unwrap_or_default();
    address.sll_protocol = u16::try_from(protocol).unwrap_or_default().to_be();
    address.sll_ifindex = index.try_into().unwrap_or_default();
    address.sll_halen = to.len().min(address.sll_addr.len()).try_into().unwrap_or_default();
    for (octet, from) in address.sll_addr.iter_mut().zip(to) {
        *octet = *from;
    }
    address
}

const fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Protocol 17, no later fragment, destination port after a header of any length.
fn filter_ipv4(port: u16) -> Vec<libc::sock_filter> {
    vec![
        step(0x30, 0, 0, 9),
        step(0x15, 0, 6, 17),
        step(0x28, 0, 0, 6),
        step(0x45, 4, 0, 0x1fff),
        step(0xb1, 0, 0, 0),
        step(0x48, 0, 0, 2),
        step(0x15, 0, 1, port.into()),
        step(0x06, 0, 0, u32::MAX),
        step(0x06, 0, 0, 0),
    ]
}

/// Next header 17, destination port.
fn filter_ipv6(port: u16) -> Vec<libc::sock_filter> {
    vec![
        step(0x30, 0, 0, 6),
        step(0x15, 0, 3, 17),
        step(0x28, 0, 0, 42),
        step(0x15, 0, 1, port.into()),
        step(0x06, 0, 0, u32::MAX),
        step(0x06, 0, 0, 0),
    ]
}

/// The link-layer address of a neighbour, as the kernel knows it.
pub(super) fn link_layer_address(index: u32, neighbor: IpAddr) -> io::Result<Option<Vec<u8>>> {
    /// `NDA_DST` and `NDA_LLADDR` of `linux/neighbour.h`.
    const DESTINATION: u16 = 1;
    const LINK_LAYER: u16 = 2;
    let (family, address) = match neighbor {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    // nlmsghdr (length, type, flags, sequence, port), ndmsg (family, index, state, flags, type), one attribute.
    let length = u32::try_from(16 + 12 + 4 + address.len()).unwrap_or_default();
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(libc::RTM_GETNEIGH.to_ne_bytes());
    request.extend(u16::try_from(libc::NLM_F_REQUEST).unwrap_or_default().to_ne_bytes());
    request.extend([0; 8]);
    request.extend([u8::try_from(family).unwrap_or_default(), 0, 0, 0]);
    request.extend(index.to_ne_bytes());
    request.extend([0; 4]);
    request.extend(u16::try_from(4 + address.len()).unwrap_or_default().to_ne_bytes());
    request.extend(DESTINATION.to_ne_bytes());
    request.extend(&address);
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the descriptor is new and owned by nobody else.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(socket)
    };
    let mut socket = std::fs::File::from(socket);
    socket.write_all(&request)?;
    let mut answer = [0; 1024];
    let read = socket.read(&mut answer)?;
    let answer = answer.get(..read).unwrap_or_default();
    if answer.get(4..6) != Some(&libc::RTM_NEWNEIGH.to_ne_bytes()) {
        return Ok(None);
    }
    let mut attributes = answer.get(28..).unwrap_or_default();
    while let [low, high, kind_low, kind_high, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([low, high])).max(4);
        if u16::from_ne_bytes([kind_low, kind_high]) == LINK_LAYER {
            return Ok(attributes.get(4..length).map(<[u8]>::to_vec));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

/// Asks for `SCHED_FIFO` and for timers without slack, for this thread.
pub(super) fn become_punctual(priority: c_int) -> io::Result<()> {
    // SAFETY: plain values, and a parameter that lives until after the call.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0);
        let mut parameter: libc::sched_param = zeroed();
        parameter.sched_priority = priority;
        if libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether this thread has a real-time scheduler.
pub(super) fn is_punctual() -> bool {
    // SAFETY: takes a number, 0 for this thread.
    let policy = unsafe { libc::sched_getscheduler(0) };
    policy & !libc::SCHED_RESET_ON_FORK == libc::SCHED_FIFO
}

/// Gives a socket room for `octets` of what waits: beyond the limit of the system if we may, else up to it.
pub(super) fn make_room(socket: BorrowedFd<'_>, octets: c_int) -> io::Result<()> {
    let set = |name| {
        // SAFETY: the value is an int that lives until after the call.
        unsafe {
            let value = (&raw const octets).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, value, len_of::<c_int>())
        }
    };
    if set(libc::SO_RCVBUFFORCE) < 0 && set(libc::SO_RCVBUF) < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn len_of<T>() -> socklen_t {
    size_of::<T>().try_into().unwrap_or(socklen_t::MAX)
}
