mod map;
mod proto;
mod redact;
pub use self::map::{ACTIONS, SOURCE, action, map, odd_item, tenant_user};
pub use self::proto::{Event, Item, Odd, Page, Place, pk};
