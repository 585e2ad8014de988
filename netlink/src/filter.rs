//! A filter in the kernel: of what happened, a socket is not told what we did ourselves.
//!
//! The kernel writes the port of the socket that made a change into the message that tells of it (RFC 3549 section
//! 2.3.2: length 4 octets, type 2, flags 2, sequence 4, port 4).

use std::io;

use netlink_packet_core::NLMSG_ERROR;
use netlink_sys::{Socket, SocketAddr};
use socket2::{SockFilter, SockRef};

const OFFSET_TYPE: u32 = 4;
const OFFSET_PORT: u32 = 12;

/// The port of a bound socket.
pub(crate) fn port(socket: &Socket) -> io::Result<u32> {
    let mut address = SocketAddr::new(0, 0);
    socket.get_address(&mut address)?;
    Ok(address.port_number())
}

/// Has the kernel drop what it would tell `socket` of the doings of `port`; replies pass.
pub(crate) fn drop_messages_of(socket: &Socket, port: u32) -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| u16::try_from(code).map(|code| SockFilter::new(code, jt, jf, k));
    let load_port = instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, OFFSET_PORT);
    let load_type = instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, OFFSET_TYPE);
    // A load turns octets into a number as the network has it; the kernel wrote them as the machine has it.
    let is = |value, yes, no| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
    let verdict = |octets| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, octets);
    let (ours, reply) = (is(port.to_be(), 0, 3), is(NLMSG_ERROR.to_be().into(), 1, 0));
    let program = [load_port, ours, load_type, reply, verdict(0), verdict(u32::MAX)];
    let program: Vec<_> = program.into_iter().collect::<Result<_, _>>().map_err(io::Error::other)?;
    SockRef::from(socket).attach_filter(&program)
}
