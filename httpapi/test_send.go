package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"mailhook/db"
)

// testPoll is how often a waiting test send is looked at.
const testPoll = 50 * time.Millisecond

// withdrawWithin bounds the one statement that takes a test send back.
const withdrawWithin = 5 * time.Second

// A TestResult is what came of a test send.
type TestResult struct {
	StatusCode      *int16       `json:"status_code" doc:"null when there was no answer."`
	DurationMS      *int32       `json:"duration_ms" doc:"null for a preview."`
	Outcome         *string      `json:"outcome" example:"ok" doc:"null when a preview could be made."`
	ResponseExcerpt string       `json:"response_excerpt"`
	Request         *TestRequest `json:"request" doc:"null when no request could be made."`
}

// A TestRequest is what was sent, or for a preview would be, with *** for what is secret.
type TestRequest struct {
	Method      string `json:"method" example:"POST"`
	URL         string `json:"url" doc:"Of slack and teams scheme and host, and … for the rest."`
	Headers     Object `json:"headers" doc:"By name, without Content-Type. Those that HTTP itself adds are not listed."`
	ContentType string `json:"content_type" example:"application/json"`
	Body        string `json:"body"`
}

type testSendRequest struct {
	ID   string `path:"id" doc:"sub_…"`
	Body *struct {
		EventType optional[string]     `json:"event_type,omitempty" doc:"Default: one that the subscription gets. Of a type that is not listed, the sample is that of its nearest listed parent."`
		Format    optional[formatName] `json:"format,omitempty" doc:"Another format of the channel, to try it. Default: that of the subscription."`
		Preview   optional[bool]       `json:"preview,omitempty" doc:"true: nothing is sent, and the answer has the request. Default: false."`
	} `nameHint:"TestSendBody"`
}

type testSendResponse struct{ Body TestResult }

func (s *server) addTestSend(api huma.API) {
	register(s, api, huma.Operation{
		OperationID: "test-subscription", Method: http.MethodPost, Path: "/v1/subscriptions/{id}/test", Tags: []string{"subscriptions"},
		Summary: "Send a test event",
		Description: "A worker sends a sample, ahead of all else and in any status, and never again. It counts nowhere; the envelope has \"test\": true. " +
			"The answer has the request beside what came of it.",
		Errors: []int{http.StatusTooManyRequests, http.StatusGatewayTimeout},
	}, s.testSend)
}

func (s *server) testSend(ctx context.Context, who caller, in *testSendRequest) (*testSendResponse, error) {
	row, err := s.findSubscription(ctx, who, in.ID)
	if err != nil {
		return nil, err
	}
	asked := db.InsertTestDeliveryParams{SubscriptionID: row.ID, AccountID: row.AccountID, Others: int32(s.config.TestsPerMinute - 1)} //nolint:gosec // a setting
	if asked.EventType, err = s.testEventType(ctx, in, row); err != nil {
		return nil, err
	}
	if in.Body != nil {
		if in.Body.Format.isValue() { // null is the default, too: that of the subscription
			if found := applyFormat(in.Body.Format, &row, false); len(found) > 0 {
				return nil, invalid(found...)
			}
		}
		asked.IsPreview = in.Body.Preview.value
	}
	asked.Format = row.Format
	id, err := s.askForTest(ctx, who, asked)
	if err != nil {
		return nil, fmt.Errorf("ask for a test send: %w", err)
	}
	result, err := s.awaitTest(ctx, id, row)
	if err != nil {
		// Nobody waits for it any more. What a worker has taken, it sends.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawWithin)
		defer cancel()
		s.queries.WithdrawTestDelivery(ctx, id) //nolint:errcheck // workers remove it after an hour
		return nil, err
	}
	return &testSendResponse{result}, nil
}

// askForTest inserts a test send, unless its account has had as many as it may: whoever sends as often as they like, and
// sees what comes of it, has a scanner.
func (s *server) askForTest(ctx context.Context, who caller, asked db.InsertTestDeliveryParams) (id uuid.UUID, err error) {
	err = s.inTx(ctx, func(q *db.Queries) error {
		if err := q.LockAccount(ctx, asked.AccountID); err != nil {
			return fmt.Errorf("lock account: %w", err)
		}
		inserted, err := q.InsertTestDelivery(ctx, asked)
		if err != nil {
			return err
		}
		if inserted.RoomIn > 0 {
			problem := newProblem(codeTooManyRequests, "", []FieldError{{"account_id", codeTooManyRequests, fmt.Sprintf(
				"has had %d test sends within a minute: try again in %d s", s.config.TestsPerMinute, seconds(inserted.RoomIn))}})
			problem.Detail, problem.retryAfter = "account_id: "+problem.Errors[0].Message, inserted.RoomIn
			return problem
		}
		id = inserted.ID
		if err := who.audit(ctx, q, "subscription.test", asked.AccountID, db.FormatID(db.SubscriptionPrefix, asked.SubscriptionID), nil, nil); err != nil {
			return err
		}
		return q.NotifyWorkers(ctx, "test")
	})
	return id, err
}

// testEventType is the type asked for, in the words of the subscription's format too, or one that the subscription gets.
func (s *server) testEventType(ctx context.Context, in *testSendRequest, row db.Subscription) (string, error) {
	if in.Body != nil && in.Body.EventType.isValue() {
		return s.eventTypeOf(ctx, s.queries, "event_type", in.Body.EventType.value, row.Format)
	}
	if row.EventTypes[0] == "*" {
		return "email.delivered", nil
	}
	eventType, err := s.queries.ConcreteEventType(ctx, row.EventTypes[0])
	if err != nil {
		return "", fmt.Errorf("choose event type: %w", err)
	}
	return eventType, nil
}

// awaitTest polls until a worker has sent it. The row is the only thing that API and worker share.
func (s *server) awaitTest(ctx context.Context, id uuid.UUID, of db.Subscription) (TestResult, error) {
	ticker := time.NewTicker(testPoll)
	defer ticker.Stop()
	begun := time.Now()
	for {
		select {
		case <-ctx.Done():
			return TestResult{}, ctx.Err()
		case <-ticker.C:
		}
		row, err := s.queries.GetTestDelivery(ctx, id)
		waited := time.Since(begun)
		switch {
		case err != nil:
			return TestResult{}, fmt.Errorf("read test send: %w", err)
		case row.IsEnded:
			return testResultOf(row, of.URL), nil
		case !row.IsLeased && waited >= s.config.NoWorkerAfter:
			return TestResult{}, fail(codeNoWorker, "no worker took the test send: is one running?")
		case waited >= of.Timeout+s.config.TestWait:
			return TestResult{}, fail(codeNoWorker, "the worker that took the test send did not finish it")
		}
	}
}

func testResultOf(row db.GetTestDeliveryRow, url string) TestResult {
	result := TestResult{StatusCode: row.StatusCode, DurationMS: row.DurationMS, Outcome: row.Outcome, ResponseExcerpt: excerptText(row.ResponseExcerpt)}
	if row.RequestHeaders != nil {
		result.Request = &TestRequest{http.MethodPost, url, Object(row.RequestHeaders), valueOf(row.ContentType), valueOf(row.RequestBody)}
	}
	return result
}
