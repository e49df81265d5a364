//! The relay of `relay.rs` once more, through the hands and inside an executor, as the server
//! waits: what the hands cost on top of the kernel.
//!
//! Same arguments, same bytes on the wire; `--wait park` parks on every wait, to show why the
//! server does not.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use glommio::{LocalExecutorBuilder, Placement};
use net::{After, Clock, ConnId, Event, Hands, HandsOptions, listen};

const BREATHE_NS: u64 = 100_000_000;
const SILENCE_NS: u64 = 20_000_000;

/// Who talks to whom.
#[derive(Default)]
struct Pairs {
    waiting: HashMap<u64, ConnId>,
    partners: HashMap<ConnId, ConnId>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut address: SocketAddr = "127.0.0.1:0".parse()?;
    let mut placement = Placement::Unbound;
    let mut always_park = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or("usage: --listen ADDR --core N --wait ring|park")?;
        match name.as_str() {
            "--listen" => address = value.parse()?,
            "--core" => placement = Placement::Fixed(value.parse()?),
            "--wait" => always_park = value == "park",
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    let listener = listen::bind(address)?;
    println!("ready {}", listen::local_addr(&listener)?);
    std::io::stdout().flush()?;
    LocalExecutorBuilder::new(placement)
        .io_memory(64 << 10)
        .spawn(move || async move {
            let options = HandsOptions { ring_entries: 4096, ..HandsOptions::default() };
            let mut hands = Hands::new(options, vec![listener]).expect("a ring");
            relay(&mut hands, always_park).await;
        })?
        .join()
        .map_err(|error| error.to_string())?;
    Ok(())
}

async fn relay(hands: &mut Hands, always_park: bool) {
    let mut pairs = Pairs::default();
    let mut events = Vec::new();
    let (mut breathed_ns, mut busy_ns) = (0, 0);
    loop {
        hands.reap(&mut events);
        let now_ns = Clock::now().mono_ns;
        if !events.is_empty() {
            busy_ns = now_ns;
        }
        for event in events.drain(..) {
            match event {
                Event::Received { conn } => pairs.forward(hands, conn),
                Event::Closed { conn, .. } => {
                    if let Some(partner) = pairs.partners.remove(&conn) {
                        hands.close(partner, After::Now);
                    }
                }
                _ => {}
            }
        }
        hands.flush();
        if now_ns - breathed_ns > BREATHE_NS {
            breathed_ns = now_ns;
            hands.breathe().await;
        }
        if always_park || now_ns - busy_ns > SILENCE_NS {
            hands.park(Duration::from_millis(500)).await;
        } else {
            hands.wait(Duration::from_millis(5));
        }
    }
}

impl Pairs {
    fn forward(&mut self, hands: &mut Hands, conn: ConnId) {
        let bytes = hands.received(conn);
        let Some(&partner) = self.partners.get(&conn) else {
            return self.greet(hands, conn);
        };
        // One copy, into the partner's send buffer: what the server does with a frame.
        let bytes = bytes.to_vec();
        hands.consume(conn, bytes.len());
        hands.send(partner, &bytes);
    }

    /// The pair's number is known: the second of a pair finds the first.
    fn greet(&mut self, hands: &mut Hands, conn: ConnId) {
        let Some(number) = hands.received(conn).first_chunk().map(|n| u64::from_be_bytes(*n))
        else {
            return hands.consume(conn, 0);
        };
        hands.consume(conn, 8);
        match self.waiting.remove(&number) {
            None => {
                self.waiting.insert(number, conn);
                hands.pause(conn);
            }
            Some(first) => {
                self.partners.insert(conn, first);
                self.partners.insert(first, conn);
                hands.resume(first);
                if !hands.received(conn).is_empty() {
                    self.forward(hands, conn);
                }
            }
        }
    }
}
