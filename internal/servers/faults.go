package servers

import "vmimport/internal/fault"

// CodeSettings is the code of the faults of Open that are about its Options.
const CodeSettings = "cloud_settings"

var errSettings = fault.New(fault.Invalid, CodeSettings, "A setting of the cloud is missing or wrong.")

// Who the customer is.
var (
	ErrToken = fault.New(fault.Denied, "token_refused", "The cloud does not take the token, or it has expired.").
			Try("Get a new token, and run the same command again: it goes on where this one has ended.")
	ErrCredentials = fault.New(fault.Denied, "credentials_refused", "The cloud does not take the password or the application credential.").
			Try("Correct the OS_* variables.")
	ErrUnscoped = fault.New(fault.Invalid, "token_unscoped", "The token is for no project.").
			Try("Ask for the token with a project as its scope.")
	ErrDomainScoped = fault.New(fault.Invalid, "token_domain_scoped", "The token is for a whole domain, not for a project.").
			Try("Ask for the token with a project as its scope, and no domain beside it.")
	ErrProject = fault.New(fault.Invalid, "project_mismatch", "The token is for another project than the one that was named.").
			Try("Correct --project-id or VMIMPORT_PROJECT_ID, or get a token for that project.")
	ErrCatalogue = fault.New(fault.Unavailable, "endpoint_unknown", "The cloud does not say where one of its services is.").
			Try("Set OS_REGION_NAME or --os-region, and OS_INTERFACE, as the cloud has them.")
)

// What a cloud's services answer.
var (
	ErrUnavailable = fault.New(fault.Unavailable, "cloud_unavailable", "The cloud did not answer as it should.").
			Try("Run the same command again: it goes on where this one has ended.")
	ErrDenied  = fault.New(fault.Denied, "cloud_denied", "The cloud does not let this user do that.")
	ErrRefused = fault.New(fault.Invalid, "cloud_refused", "The cloud refused the request.")
)

// What becomes of a server.
var (
	ErrServerID      = fault.New(fault.Invalid, "server_id_invalid", "That is no id of a server.").Try("Give the id, not the name: openstack server list shows both.")
	ErrServerUnknown = fault.New(fault.NotFound, "server_unknown", "The project has no such server.").
				Try("Compare the id with the server list of the project that the token is for.")
	ErrServerLocked = fault.New(fault.Conflict, "server_locked", "The server is locked.").
			Try("Unlock it (openstack server unlock ID), and run the same command again.")
	ErrServerBusy = fault.New(fault.Conflict, "server_busy", "The server is in the middle of something else.").
			Try("Wait until that has ended, and run the same command again.")
	ErrServerState = fault.New(fault.Conflict, "server_state", "The server cannot do that in its present state.").
			Try("Bring it into the state ACTIVE or SHUTOFF first, and see that it is not locked.")
	ErrServerError = fault.New(fault.Conflict, "server_error", "The server is in the state ERROR.").
			Try("Look into the cloud's console for why; a reset of the state, or a hard reboot, may help.")
	ErrPowerLost = fault.New(fault.Unavailable, "power_change_lost", "The cloud accepted the request and then did nothing.").
			Try("Run the same command again; if it ends like this again, look into the cloud's console.")
	ErrPowerTimeout = fault.New(fault.Unavailable, "power_timeout", "The server has not changed its state in time.").
			Try("Look at it in the cloud's console; run the same command again to go on waiting.")
)

// What becomes of an image.
var (
	ErrRunning = fault.New(fault.Conflict, "server_running", "The server is not stopped, so an image of it might be inconsistent.").
			Try("Stop it first, or say that the image may be made of a running server.")
	ErrImageName = fault.New(fault.Invalid, "image_name_invalid", "The image's name is empty, longer than 255 characters, or has control characters.").
			Try("Give another name.")
	ErrBootVolume = fault.New(fault.Invalid, "boot_volume_unclear", "It is not clear which of the server's volumes it boots from.").
			Try("Name the one with --volume.")
	ErrImageFailed  = fault.New(fault.Conflict, "image_failed", "The cloud could not make the image.")
	ErrImageUnclear = fault.New(fault.Conflict, "image_unclear", "An image of the server's volume is being made, and it is not clear which one it is.").
			Try("Wait until the volume is in use again and its images are active; then run the same command again, or delete the image that nobody needs.")
	ErrImageUncertain = fault.New(fault.Unavailable, "image_uncertain", "The cloud gave no answer to the request for an image; it may have begun one.").
				Try("Run the same command again: it finds the image, if there is one.")
	ErrImageTimeout = fault.New(fault.Unavailable, "image_timeout", "The image is not there in time.").
			Try("Run the same command again to go on waiting.")
	ErrImageLimit = fault.New(fault.Exhausted, "image_limit", "The cloud makes no more than 4 images of a project in an hour.").
			Try("Run the same command again later, or without --no-wait.")
)
