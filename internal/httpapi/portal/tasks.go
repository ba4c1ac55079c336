package portal

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/labstack/echo/v4"

	"vmimport/tasks"
)

const (
	// perPage is what people look over at once.
	perPage = 20
	// lastPage keeps what is asked for within what the API counts to.
	lastPage = 10_000_000
)

// listBody is what a list shows.
type listBody struct {
	Kind    tasks.Kind
	Path    string
	Records []*record
	Page    int // from 1
	Older   int // page; 0: none
	Newer   int
}

// listOf shows the tasks of a kind.
func (p *Portal) listOf(k kind) func(echo.Context, *caller) error {
	return func(c echo.Context, api *caller) error {
		number, err := strconv.Atoi(c.QueryParam("page"))
		if err != nil || number < 1 || number > lastPage {
			number = 1
		}
		// One more than is shown tells whether there is a next page.
		records, err := api.list(k, (number-1)*perPage, perPage+1)
		if err != nil {
			return err
		}
		body := listBody{Kind: k.Kind, Path: k.path, Page: number, Newer: number - 1, Records: records}
		if len(records) > perPage {
			body.Records, body.Older = records[:perPage], number+1
		}
		return p.render(c, http.StatusOK, "list", p.words(c).text("list.title."+string(k.Kind)), body)
	}
}

// detailBody is what the page of one task shows.
type detailBody struct {
	*record
	Look    *look
	Path    string // of the list
	Cancels bool
	Refused string // what the API said of an action
	Said    string // the same in its own words, if these are others
}

// detailOf shows one task.
func (p *Portal) detailOf(k kind) func(echo.Context, *caller) error {
	return func(c echo.Context, api *caller) error {
		id, err := taskID(c)
		if err != nil {
			return err
		}
		return p.showDetail(c, api, k, id, nil)
	}
}

// showDetail shows a task, and what the API said of an action on it.
func (p *Portal) showDetail(c echo.Context, api *caller, k kind, id tasks.ID, said *apiError) error {
	r, err := api.status(k, id)
	if err != nil {
		return err
	}
	body, status := detailBody{record: r, Look: p.words(c).look(r), Path: k.path, Cancels: p.cancels(k)}, http.StatusOK
	if said != nil {
		status = shownStatus(said)
		body.Refused, body.Said = p.words(c).refusal(k, said)
	}
	return p.render(c, status, "detail", r.Name(), body)
}

// askCancelOf asks whether a task shall be canceled, of those who have no script.
func (p *Portal) askCancelOf(k kind) func(echo.Context, *caller) error {
	return func(c echo.Context, api *caller) error {
		id, err := taskID(c)
		if err != nil {
			return err
		}
		r, err := api.status(k, id)
		if err != nil {
			return err
		}
		if r.State != tasks.Queued && r.State != tasks.Processing {
			return c.Redirect(http.StatusSeeOther, k.page(id))
		}
		return p.render(c, http.StatusOK, "cancel", p.words(c).text("cancel.title."+string(k.Kind)), detailBody{record: r, Path: k.path})
	}
}

func (p *Portal) cancelOf(k kind) func(echo.Context, *caller) error { return p.actionOf(k, "/cancel") }
func (p *Portal) retryOf(k kind) func(echo.Context, *caller) error  { return p.actionOf(k, "/retry") }

// actionOf asks the API to do something with a task, and shows the task: with what the
// API said, if it refused.
func (p *Portal) actionOf(k kind, action string) func(echo.Context, *caller) error {
	return func(c echo.Context, api *caller) error {
		id, err := taskID(c)
		if err != nil {
			return err
		}
		err = api.call(http.MethodPost, taskPath(k, id)+action, nil, nil)
		said, ok := errors.AsType[*apiError](err)
		switch {
		case ok && said.Status != http.StatusUnauthorized:
			return p.showDetail(c, api, k, id, said)
		case err != nil:
			return err
		}
		return c.Redirect(http.StatusSeeOther, k.page(id))
	}
}
