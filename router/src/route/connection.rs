//! A link's connection: made, made again when it broke, read and written.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use super::in_flight::{Reception, Shared};
use super::incoming::{Arrived, FrameReader};
use super::link::{Failure, LinkCondition};
use super::outgoing::Round;

/// Bytes asked of the system for each direction of a socket: a large batch is handed over at once.
const SOCKET_BUFFER_BYTES: u32 = 2 << 20;
/// A peer that does not acknowledge bytes, or answers no probe on an idle connection, for so long
/// is gone.
const PEER_SILENCE_MAX: Duration = Duration::from_secs(20);

/// Keeps the link connected until its last handle is gone.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let (shortest, longest) = shared.limits.backoff;
    let mut pause = shortest;
    loop {
        let connected = tokio::select! {
            connected = connect(&shared) => connected,
            () = shared.closed.notified() => return shared.go_down(&Failure::Closed, closed()),
        };
        let failure = match connected {
            Ok(stream) => {
                shared.go_up();
                let (failure, has_worked) = serve(&shared, stream).await;
                if matches!(failure, Failure::Closed) {
                    return shared.go_down(&failure, closed());
                }
                if has_worked {
                    tracing::warn!(address = %shared.address, %failure, "a link broke");
                    shared.go_down(&failure, LinkCondition::Connecting);
                    pause = shortest;
                    continue;
                }
                shared.go_down(&failure, LinkCondition::Down(failure.clone()));
                failure
            }
            Err(failure) => {
                shared.condition.send_replace(LinkCondition::Down(failure.clone()));
                failure
            }
        };
        tracing::debug!(address = %shared.address, %failure, "no connection");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.closed.notified() => return shared.go_down(&Failure::Closed, closed()),
        }
        pause = (pause * 2).min(longest);
    }
}

fn closed() -> LinkCondition {
    LinkCondition::Down(Failure::Closed)
}

async fn connect(shared: &Shared) -> Result<TcpStream, Failure> {
    let failed = |error| Failure::Connect(Arc::new(error));
    let address = shared.address;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(failed)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES).map_err(failed)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES).map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    set_silence_limits(&socket).map_err(|errno| failed(errno.into()))?;
    let connecting = tokio::time::timeout(shared.limits.connect_timeout, socket.connect(address));
    let connected = connecting.await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    connected.map_err(failed)
}

fn set_silence_limits(socket: &TcpSocket) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    const PROBES: u32 = 3;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, PEER_SILENCE_MAX / (PROBES + 1))?;
    sockopt::set_tcp_keepintvl(socket, PEER_SILENCE_MAX / (PROBES + 1))?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    sockopt::set_tcp_user_timeout(socket, PEER_SILENCE_MAX.as_millis() as u32)
}

/// Sends and receives until the connection is of no use; why, and whether the node ever answered.
async fn serve(shared: &Arc<Shared>, stream: TcpStream) -> (Failure, bool) {
    let stream = Arc::new(stream);
    let mut writer = tokio::spawn(write(shared.clone(), stream.clone()));
    let mut has_worked = false;
    let failure = tokio::select! {
        failure = read(shared, &stream, &mut has_worked) => failure,
        ended = &mut writer => return (write_failure(ended), has_worked),
        failure = shared.overdue() => failure,
        () = shared.closed.notified() => Failure::Closed,
    };
    // It stops where it waits: what it wrote it has counted.
    writer.abort();
    let _ = writer.await;
    (failure, has_worked)
}

fn write_failure(ended: Result<Failure, tokio::task::JoinError>) -> Failure {
    match ended {
        Ok(failure) => failure,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => Failure::Closed,
        },
    }
}

async fn read(shared: &Shared, stream: &TcpStream, has_worked: &mut bool) -> Failure {
    let mut reader = FrameReader::new();
    loop {
        if let Err(error) = receive(shared, stream, &mut reader).await {
            return Failure::Broken(Arc::new(error));
        }
        match take_frames(shared, &mut reader) {
            Ok(took_some) => *has_worked |= took_some,
            Err(failure) => return failure,
        }
    }
}

async fn receive(
    shared: &Shared,
    stream: &TcpStream,
    reader: &mut FrameReader,
) -> std::io::Result<()> {
    loop {
        stream.readable().await?;
        match stream.try_read(reader.target()) {
            Ok(count) => {
                shared.on_received();
                return reader.advance(count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes in what has arrived; whether that was any whole frame.
fn take_frames(shared: &Shared, reader: &mut FrameReader) -> Result<bool, Failure> {
    let mut took_some = false;
    loop {
        let header = match reader.next()? {
            Arrived::Nothing => return Ok(took_some),
            Arrived::LargeBegins(header) => header,
            Arrived::Small(header, payload) => {
                shared.take_small(header, payload)?;
                took_some = true;
                continue;
            }
            Arrived::Large(header, payload) => {
                shared.take_large(header, payload)?;
                took_some = true;
                continue;
            }
        };
        match shared.reception_of(&header)? {
            Reception::Kept(reservation) => reader.begin_large(header, reservation),
            Reception::PassedOver => {
                reader.pass_over(&header);
                took_some = true;
            }
        }
    }
}

/// A stream as far as it takes bytes at once.
struct AtOnce<'a>(&'a TcpStream);

impl Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes what is queued, as long as there is a connection.
async fn write(shared: Arc<Shared>, stream: Arc<TcpStream>) -> Failure {
    let (mut round, mut frames) = (Round::default(), Vec::new());
    loop {
        shared.plan(&mut frames);
        if frames.is_empty() {
            shared.work.notified().await;
            continue;
        }
        round.clear();
        frames.drain(..).for_each(|frame| round.push(frame));
        while !round.is_done() {
            match round.write_to(&mut AtOnce(&stream)) {
                Ok(count) => shared.on_written(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if let Err(error) = stream.writable().await {
                        return Failure::Broken(Arc::new(error));
                    }
                }
                Err(error) => return Failure::Broken(Arc::new(error)),
            }
        }
        // Bodies of batches are given back before waiting.
        round.clear();
        tokio::task::coop::consume_budget().await;
    }
}
