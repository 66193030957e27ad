//! The clients that are measured: plain system calls, timed one by one, and the samples as JSON.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that are open at a time, far below any backlog.
const GROUP: usize = 100;
/// Calls that are timed together where one is too short for the clock.
const TOGETHER: u32 = 100;

/// `udp-connect|tcp-connect|tcp-connect-own|udp-send ADDRESS COUNT`, `bulk ADDRESS MILLISECONDS`.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let &[what, address, number] = words else { bail!("a client wants a kind, an address and a number") };
    let address: SocketAddr = address.parse().context("the address")?;
    let number: u64 = number.parse().context("the number")?;
    let samples = match what {
        "udp-connect" => udp_connect(address, number)?,
        "tcp-connect" => tcp_connect(address, None, number)?,
        // Accepted by this very thread: nobody has to wake up.
        "tcp-connect-own" => {
            let listener = TcpListener::bind(address)?;
            tcp_connect(address, Some(&listener), number)?
        }
        "udp-send" => udp_send(address, number)?,
        "bulk" => bulk(address, Duration::from_millis(number))?,
        other => bail!("unknown client {other}"),
    };
    println!("{}", serde_json::to_string(&samples)?);
    Ok(())
}

/// Nanoseconds of connect() on a datagram socket: the hook and little else.
fn udp_connect(address: SocketAddr, count: u64) -> Result<Vec<f64>> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    let to = SockAddr::from(address);
    together(count, || Ok(socket.connect(&to)?))
}

/// Nanoseconds of connect() on a new TCP socket, handshake included.
fn tcp_connect(address: SocketAddr, own: Option<&TcpListener>, count: u64) -> Result<Vec<f64>> {
    let to = SockAddr::from(address);
    let mut samples = Vec::new();
    while (samples.len() as u64) < count {
        let mut open = Vec::with_capacity(GROUP);
        for _ in 0..GROUP {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            // No TIME_WAIT: ports would run out.
            socket.set_linger(Some(Duration::ZERO))?;
            let began = Instant::now();
            socket.connect(&to)?;
            samples.push(began.elapsed().as_nanos() as f64);
            open.push(socket);
        }
        if let Some(listener) = own {
            (0..GROUP).try_for_each(|_| listener.accept().map(drop))?;
        }
        drop(open);
    }
    Ok(samples)
}

/// Nanoseconds of send() on a connected datagram socket: the packet's whole way through the veth.
fn udp_send(address: SocketAddr, count: u64) -> Result<Vec<f64>> {
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(address)?;
    let packet = [0; 100];
    together(count, || socket.send(&packet).map(|_| ()).map_err(Into::into))
}

/// Nanoseconds of a call, as means of many in a row.
fn together(count: u64, call: impl Fn() -> Result<()>) -> Result<Vec<f64>> {
    let batch = |_| {
        let began = Instant::now();
        (0..TOGETHER).try_for_each(|_| call())?;
        Ok(began.elapsed().as_nanos() as f64 / f64::from(TOGETHER))
    };
    (0..count).map(batch).collect()
}

/// Bytes a second of one TCP stream that is written as fast as it goes.
fn bulk(address: SocketAddr, length: Duration) -> Result<Vec<f64>> {
    let mut stream = std::net::TcpStream::connect(address)?;
    let block = vec![0; 256 * 1024];
    let (began, mut bytes) = (Instant::now(), 0);
    while began.elapsed() < length {
        stream.write_all(&block)?;
        bytes += block.len();
    }
    Ok(vec![bytes as f64 / began.elapsed().as_secs_f64()])
}
