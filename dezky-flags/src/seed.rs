//! Initial flags of a new platform.

use crate::NewFlag;

/// Ten flags of a workspace platform, all `off`, for [`Flags::seed`](crate::Flags::seed).
pub fn seeded_flags() -> Vec<NewFlag> {
    let flag = |(key, description): (&str, &str)| NewFlag {
        description: description.to_owned(),
        ..NewFlag::new(key)
    };
    SEEDED.map(flag).into()
}

const SEEDED: [(&str, &str); 10] = [
    ("calendar_room_booking", "Lets members book rooms and equipment in the calendar."),
    ("chat_guest_access", "Lets tenants invite guests from outside into single chat channels."),
    ("files_office_coediting", "Opens office documents for editing by several people at once."),
    ("gdpr_export_v2", "Exports a person's data with the second version of the export, in parts."),
    (
        "jmap_native_v2",
        "Serves the web mail over JMAP directly rather than through the IMAP bridge.",
    ),
    ("mail_undo_send", "Holds outgoing mail back for some seconds so that it can be taken back."),
    ("meetings_recording", "Lets hosts record meetings into the tenant's files."),
    ("new_billing_engine", "Calculates invoices with the new billing engine."),
    ("oci_versioning", "Keeps the versions of files in object storage rather than on the volume."),
    ("partner_portal", "Shows partners the portal in which they manage their customers."),
];
