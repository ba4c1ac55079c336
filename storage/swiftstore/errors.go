package swiftstore

import (
	"errors"

	"vmimport/internal/fault"
	"vmimport/storage"
)

// giveRight is the remedy when Swift knows the service and lets it read or write nothing.
const giveRight = "Give the service's user the role that may use all accounts, ResellerAdmin unless Swift has another."

var (
	// errUnsupported is an object that Swift would join, and the service does not.
	errUnsupported = fault.New(fault.Invalid, "manifest_unsupported",
		"The large object is made of parts in a way that the service does not read.").
		Try("Store the image as one object, or as a large object whose parts are plain objects of the same project.")

	errTooMany = errUnsupported.Saw("more than %d parts", maxParts)

	// errPart is a large object that was whole when it was made.
	errPart = storage.ErrNoObject.Saw("a part of the large object is missing or was replaced")

	// What another try may not meet: replicas that Swift has not yet brought into
	// line, and a manifest that was replaced between two looks.
	errBehind   = storage.ErrUnavailable.Because(errors.New("read object: some replicas are behind"))
	errReplaced = storage.ErrUnavailable.Because(errors.New("open object: the manifest was just replaced"))

	errNoAccountURL = fault.New(fault.Unavailable, "endpoint_unknown",
		"The address of the projects' object storage is not known.").
		Try("Set the URL of the accounts in the configuration, with {project} in it.")

	// What keeps an object from being written.
	errName = fault.New(fault.Invalid, "object_name_invalid",
		"The name of the object or container is too long, or cannot be one.").
		Try("Choose a shorter name without control characters and segments of dots.")
	errPartsExist = storage.ErrObjectExists.
			Try("Remove them too, or choose another container. Removing a large object with multipart-manifest=delete removes its parts.")
	errQuota = fault.New(fault.Invalid, "object_store_quota",
		"The quota of the container or of the project's object storage is used up.").
		Try("Remove objects that are not needed, or have the quota raised.")
	errLimit = fault.New(fault.Invalid, "object_store_limit",
		"The object store does not take objects of that many parts, or parts that large.").
		Try("Let Swift have its usual limits: max_file_size of 5 GiB, and max_manifest_segments of 1000.")
	errWrite = fault.New(fault.Denied, "swift_right_missing",
		"The object store does not let the service write into the project's containers.").Try(giveRight)

	// What can be wrong with a store, as Check tells it.
	errRight = fault.New(fault.Denied, "swift_right_missing",
		"The object store does not let the service read the projects' objects.").Try(giveRight)
	errToken = fault.New(fault.Denied, "swift_token_refused",
		"The object store does not accept the service's token.").
		Try("Let Swift validate tokens with the same Keystone, and look into its log.")
	errNotSwift = fault.New(fault.Unavailable, "swift_answer_wrong",
		"What answers at the address of the object store is no Swift, or is out of order.").
		Try("Correct the URL of the accounts or the catalogue's endpoint, or look into Swift's log.")
	errUnreachable = fault.New(fault.Unavailable, "swift_unreachable", "The object store does not answer.").
			Try("Start the object store, or correct the URL of the accounts or the catalogue's endpoint.")
)
