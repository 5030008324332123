//! A hostile agent that wants the streams of others, and a hostile relay that helps it (F48, S16 to S19).

use bytes::Bytes;
use sealock_core::secret::Secret;

use super::agent::End;
use super::check::Failure;
use super::link::Body;
use super::world::{OPENER, PROVIDER, World};
use crate::stream::{Attach, Encoded, Epoch, Frame, Proof, Role, Ticket, TicketContext};

/// A stream of another tenant, at a relay that is honest.
const FOREIGN: u64 = 5;

impl World {
    /// Opens a leg of somebody else's stream.
    pub(super) fn steal(&mut self, tenant: usize, pick: usize, kind: u64) -> Result<(), Failure> {
        let foreign = kind == FOREIGN;
        let aims: Vec<usize> = if foreign {
            // A guess: what is there of another tenant a thief cannot know.
            let streams = 0..self.truths.len();
            streams
                .filter(|&stream| self.plan.streams[stream].tenant != tenant)
                .collect()
        } else {
            let live = self.ends.keys().filter(|(_, side)| *side == PROVIDER);
            let live = live.map(|(stream, _)| *stream);
            live.filter(|&stream| self.plan.streams[stream].tenant == tenant)
                .collect()
        };
        let thief = self.plan.tenants[tenant].thief();
        let usable = self.usable_sessions(thief);
        let (Some(&stream), Some(&session)) = (
            aims.get(pick % aims.len().max(1)),
            usable.get(pick % usable.len().max(1)),
        ) else {
            return Ok(());
        };
        let current = match self.ends.get(&(stream, PROVIDER)) {
            Some(end) if !foreign => end.stream.epoch(),
            _ => Epoch::FIRST,
        };
        let epoch = match kind {
            // The same leg once more.
            0 => current,
            _ => Epoch(current.0 + 1 + u32::from(self.rng(thief).chance(30))),
        };
        self.stats.thefts += 1;
        let leg = self.legs.len();
        self.legs.push(self.new_leg(stream, epoch, thief, session));
        // A relay of the thief's says that the stream's own opener is calling.
        if kind != 1 && !foreign {
            self.legs[leg].asserted = self.truths[stream].agents[OPENER];
        }
        self.legs[leg].stolen = kind;
        self.send_open(leg);
        Ok(())
    }

    /// The provider has answered: now the proof, as good as a thief can make one.
    pub(super) fn thief_goes_on(&mut self, leg: usize) -> Result<(), Failure> {
        let (stream, epoch) = (self.legs[leg].stream, self.legs[leg].epoch);
        let proof = match self.legs[leg].stolen {
            2 => None,
            3 => self.overheard_proof(stream),
            _ => Some(self.forged_proof(stream, epoch)),
        };
        let near = self.ends.get(&(stream, OPENER)).map(End::received);
        let frame = Frame::Attach(Attach {
            epoch,
            received: near.unwrap_or(0),
            delivered: near.unwrap_or(0),
            limit: 1 << 30,
            end_delivered: false,
            proof,
        });
        let Encoded { header, .. } = frame.encode();
        let bytes = Bytes::copy_from_slice(header.as_ref());
        let from = OPENER;
        self.send_on_leg(leg, OPENER, Body::Data { leg, from, bytes });
        Ok(())
    }

    // One that was used: a relay that keeps a fresh proof from the provider has that leg's place on the path anyway,
    // and end-to-end TLS is what stands against it.
    fn overheard_proof(&self, stream: usize) -> Option<Proof> {
        let mut used = self.overheard.iter().rev().filter(|(other, epoch, _)| {
            *other == stream && self.taken.contains_key(&(stream, *epoch))
        });
        used.next().map(|(_, _, proof)| proof.clone())
    }

    fn forged_proof(&self, stream: usize, epoch: Epoch) -> Proof {
        let truth = &self.truths[stream];
        let context = TicketContext {
            stream: truth.id.0,
            opener: self.agent_id(truth.agents[OPENER]),
            accepter: self.agent_id(truth.agents[PROVIDER]),
        };
        Ticket::new(Secret::new([0x66; 32]), context).prove(Role::Opener, epoch)
    }
}
