//! The words of Sealock: every domain type that two crates share, and the pure decisions over them.
//!
//! Nothing here reads a clock, draws randomness, takes a lock or does IO: `now`, seeds and bytes are
//! arguments. A word has one meaning in the whole workspace; a new one is added to this list first.
//!
//! | word | meaning |
//! |---|---|
//! | *flow* | one conversation of an application, from its arrival at a hop to its end |
//! | *hop* | a place where a flow is judged and passed on: agent, relay, gateway |
//! | *inlet*, *outlet* | where a flow comes in at a hop, how it leaves |
//! | *front door* | an inlet whose clients say where they want to go: SOCKS5, or an HTTP proxy |
//! | *near*, *far* | the side of a hop that a flow comes from, the side it goes to |
//! | *local*, *remote* | our end of a socket, the other end |
//! | *session* | the authenticated connection between an agent and a relay |
//! | *leg* | one way of carrying a stream between two agents: today a relayed QUIC stream |
//! | *stream* | the resumable, ordered bytes between two agents; it outlives its legs |
//! | *link*, *path* | what a session runs over; the sequence of links a leg takes |
//! | *rule*, *permit* | a line of policy; a flow's right to go on, which policy can take back |
//! | *pattern*, *condition* | whom and what a rule speaks of; when it speaks at all |
//! | *label* | a key and a value said of an agent or a service, of which rules can speak |
//! | *option*, *layer* | a setting of a node; one place in which settings are said: file, environment, flags, defaults |
//! | *reason* | why a flow ended or never began |
//! | *service* | a name in a tenant that agents provide and others open |
//! | *check*, *probe* | what tells whether the program behind a service is well; one way of trying it |
//! | *terms*, *candidate* | how a provider wants to be chosen: weight, standby, region; a provider that may be chosen for an open |
//! | *destination*, *claim* | a place outside that a workload wants to reach; a name that only the flow's own bytes tell |
//! | *desk*, *book* | the DNS of one workload; which address the workload was given for which name |
//! | *route*, *way* | by which ways destinations are reached; one way out |
//! | *provider*, *caller* | the agent that serves a service, the agent that opens it |
//! | *view* | all that a tenant's nodes know of it: rules, services, agents, revocations; signed |
//! | *workload* | a program, or a group of them, whose flows are judged as those of one |
//! | *capture*, *method* | taking every connection that a workload makes; by which means of the kernel |
//! | *fence* | the namespaces around a workload, out of which only captured flows lead |
//! | *tenant* | a closed world of names; nothing is visible from one to another |
//! | *trust* | the roots and the trust domain by which certificates are judged |

pub mod address;
pub mod api;
pub mod check;
pub mod choice;
pub mod config;
pub mod destination;
pub mod fact;
pub mod guard;
pub mod host;
pub mod identity;
pub mod name;
pub mod policy;
pub mod reason;
pub mod route;
pub mod secret;
pub mod token;
pub mod view;
