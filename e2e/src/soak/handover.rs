// SPDX-License-Identifier: Apache-2.0
//! Hand-over, again and again: two open conversations must outlive every end of the daemon.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::admin::NicState;

use crate::Shop;
use crate::conversation::{STOREFRONT, Stream};
use crate::shop::API;

/// Time for every machine to be connected again: QEMU tries once a second.
const BACK_LIMIT: Duration = Duration::from_secs(20);
/// Both conversations are a machine with split rings talking to one with packed rings.
const CONVERSATIONS: [&str; 2] = ["first", "second"];

/// How often the daemon is to end, and how.
#[derive(Clone, Copy, Debug)]
pub struct HandOvers {
    /// By SIGKILL, in the middle of whatever it does.
    pub kills: u32,
    /// In order, its successor being the next version.
    pub upgrades: u32,
}

/// What each conversation moves, both ways together, before the daemon ends again: ends in close succession would only
/// show that TCP gives up on a network that is nearly never there.
const FRAMES_MIN: u64 = 8;

/// What the conversations went through.
#[derive(Clone, Debug)]
pub struct Endured {
    /// In the guests' own words, one for each conversation: lines and longest pause.
    pub conversations: Vec<String>,
    /// How long it took until all machines were served again, at most.
    pub slowest: Duration,
}

/// Ends and starts the daemon as often as asked while the conversations go on; `progress` is told after each time.
///
/// # Errors
/// When a conversation loses a line or ends, or a machine does not come back.
pub fn hand_over(
    shop: &mut Shop,
    wish: HandOvers,
    mut progress: impl FnMut(u32, Duration),
) -> Result<Endured> {
    let start = |name| Stream::start(shop, "acme/web", name, STOREFRONT, API);
    let streams: Vec<Stream> = CONVERSATIONS.into_iter().map(start).collect::<Result<_>>()?;
    let mut slowest = Duration::ZERO;
    for number in 0..wish.kills + wish.upgrades {
        // Upgrades are spread evenly among the kills.
        let (before, after) = (number * wish.upgrades, (number + 1) * wish.upgrades);
        let all = wish.kills + wish.upgrades;
        let ended = Instant::now();
        if before / all == after / all {
            shop.daemon.kill()?
        } else {
            shop.daemon.stop()?
        }
        shop.daemon.restart()?;
        for id in ["acme/web", "acme/api"] {
            let back = shop.until(BACK_LIMIT, || {
                let machine = shop.machine(id)?;
                Ok(machine.nics.iter().all(|nic| nic.state == NicState::Running).then_some(()))
            });
            back.with_context(|| format!("{id} did not come back after end {}", number + 1))?;
        }
        slowest = slowest.max(ended.elapsed());
        // Whoever was not answered for a second sends again only some time later. The daemon counts from its start.
        let going_on = shop.until(BACK_LIMIT, || {
            let flows = shop.flows("acme/web")?;
            let moving =
                flows.iter().filter(|flow| flow.destination.port == 8080 && flow.packets >= FRAMES_MIN);
            Ok((moving.count() >= CONVERSATIONS.len()).then_some(()))
        });
        going_on.with_context(|| {
            let (flows, drops) = (shop.flows("acme/web"), shop.status().map(|status| status.drops));
            format!("not all conversations went on after end {}: {flows:?}, dropped: {drops:?}", number + 1)
        })?;
        progress(number + 1, ended.elapsed());
    }
    let conversations: Result<Vec<_>> = streams.iter().map(|stream| stream.finish(shop)).collect();
    match conversations {
        Ok(conversations) => Ok(Endured { conversations, slowest }),
        Err(error) => bail!("a conversation was lost: {error:#}\n{}", shop.reports()),
    }
}
